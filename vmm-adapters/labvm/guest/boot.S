/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the multiboot entry (32-bit, no paging) to C in 64-bit mode, and from there to ring 3; the same for
 * further vCPUs from a real-mode trampoline. No interrupt is ever enabled and there is no IDT: a fault is a
 * triple fault, which the VMM reports.
 */
#define GDT_CODE64     0x08
#define GDT_DATA       0x10
#define GDT_CODE32     0x18
#define STACK_BYTES    8192
#define TRAMPOLINE_GPA 0x8000
#define MSR_EFER       0xc0000080
#define EFER_SCE_LME   0x101
#define MSR_SYSENTER   0x174
#define CR0_ON         0x80010033 /* PG WP NE ET MP PE; caches on */

	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002
	.long 0x00000003 /* align modules; memory map wanted */
	.long -(0x1badb002 + 0x00000003)

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	movl %eax, multiboot_magic
	movl %ebx, multiboot_info

	/* Identity map of the first 4 GiB by 2 MiB pages, user access on every level: ring 3 lives here too. */
	movl $pdpt + 7, pml4
	movl $pd + 7, %eax
	movl $pdpt, %edi
	movl $4, %ecx
1:	movl %eax, (%edi)
	addl $4096, %eax
	addl $8, %edi
	decl %ecx
	jnz 1b
	movl $0xe7, %eax /* present, writable, user, accessed, dirty, 2 MiB */
	movl $pd, %edi
	movl $2048, %ecx
2:	movl %eax, (%edi)
	addl $0x200000, %eax
	addl $8, %edi
	decl %ecx
	jnz 2b

	lgdt gdt_ptr
	ljmp $GDT_CODE32, $enter_long

	/* Every vCPU comes by here. */
enter_long:
	movl $GDT_DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl $0x20, %eax /* PAE */
	movl %eax, %cr4
	movl $pml4, %eax
	movl %eax, %cr3
	movl $MSR_EFER, %ecx
	movl $EFER_SCE_LME, %eax
	xorl %edx, %edx
	wrmsr
	movl $CR0_ON, %eax
	movl %eax, %cr0
	ljmp $GDT_CODE64, $in_long

	.code64
in_long:
	movl $1, %edi
	lock xaddl %edi, cpus_arrived /* 0 for the first, which comes alone */
	cmpl $MAX_CPUS, %edi
	jae park
	movl %edi, %eax
	incl %eax
	imull $STACK_BYTES, %eax
	leal stacks(%eax), %esp
	subl $8, %esp
	jmp cpu_main /* (unsigned cpu) */

park:	pause
	jmp park

	/* void enter_ring3(unsigned cpu, void (*entry)(unsigned cpu)): does not return, keeps the stack. */
	.globl enter_ring3
enter_ring3:
	movl $MSR_SYSENTER, %ecx
	movl $8, %eax /* sysexitq takes CS = 8 + 32, SS = 8 + 40 */
	xorl %edx, %edx
	wrmsr
	pushq $0x3002 /* IOPL 3: in and out from ring 3 */
	popfq
	movq %rsi, %rdx
	movq %rsp, %rcx
	sysexitq

	/* Copied to TRAMPOLINE_GPA, where a STARTUP IPI sends the other vCPUs in real mode. */
	.globl trampoline, trampoline_end
	.code16
trampoline:
	cli
	cld
	movw %cs, %ax
	movw %ax, %ds
	lgdtl trampoline_gdt_ptr - trampoline
	movl $0x11, %eax
	movl %eax, %cr0
	ljmpl $GDT_CODE32, $enter_long
	.balign 4
trampoline_gdt_ptr:
	.word gdt_end - gdt - 1
	.long gdt
trampoline_end:

	.data
	.balign 8
gdt:
	.quad 0
	.quad 0x00af9b000000ffff /* 08: 64-bit code */
	.quad 0x00cf93000000ffff /* 10: data */
	.quad 0x00cf9b000000ffff /* 18: 32-bit code */
	.quad 0
	.quad 0x00affb000000ffff /* 28: 64-bit code, ring 3 */
	.quad 0x00cff3000000ffff /* 30: data, ring 3 */
gdt_end:
gdt_ptr:
	.word gdt_end - gdt - 1
	.long gdt

	.globl multiboot_magic, multiboot_info, cpus_arrived
multiboot_magic:
	.long 0
multiboot_info:
	.long 0
cpus_arrived:
	.long 0

	.bss
	.balign 4096
	.globl pdpt, pd
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4096 * MAX_GIB
stacks:	.skip STACK_BYTES * MAX_CPUS

	.section .note.GNU-stack, "", @progbits
