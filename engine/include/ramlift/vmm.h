/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef RAMLIFT_VMM_H
#define RAMLIFT_VMM_H
/**
 * @file vmm.h
 * The VMM socket: what a VMM and ramliftd say to each other. docs/vmm-socket.md is the contract; this
 * header fixes the layout. vhost-user's framing: a 12-byte header, a payload, file descriptors by
 * SCM_RIGHTS with the first byte. Host byte order (one host, one kernel).
 *
 * Who speaks: from RL_VMM_HELLO to RL_VMM_ONLINE the VMM asks and the engine replies; afterwards the
 * engine asks and the VMM replies, one request at a time. Every request is replied to: same request
 * number, RL_VMM_F_REPLY, and a payload that starts with struct rl_vmm_status. Either side may close at
 * any time (§ "what a lost connection means" of the contract).
 *
 * Threads: a layout, no code. Units: bytes, pages of 4096 bytes (gpn = guest-physical address >> 12).
 * Errors:  struct rl_vmm_status.code is 0 or a negative errno; text says why, for a person.
 */
#include <stddef.h>
#include <stdint.h>

#define RL_VMM_HDR_BYTES   12u
#define RL_VMM_MAX_PAYLOAD 4096u
#define RL_VMM_MAX_FDS     8u
#define RL_VMM_MAX_REGIONS 16u
#define RL_VMM_MAX_SLOTS   128u
#define RL_VMM_MAX_VCPUS   256u
#define RL_VMM_NAME_BYTES  64u /* with the terminating 0 */
#define RL_VMM_PEER_BYTES  128u
#define RL_VMM_TEXT_BYTES  256u
#define RL_VMM_STATE_MAX   (64u << 20) /* device state, at most */

struct rl_vmm_hdr {
	uint32_t request;
	uint32_t flags; /* bits 0-1: RAMLIFT_VMM_VERSION; bit 2: a reply */
	uint32_t size;  /* bytes of payload */
};
#define RL_VMM_F_VERSION 0x3u
#define RL_VMM_F_REPLY   0x4u

/* Values are assigned here and never reused. */
enum rl_vmm_request {
	/* VMM -> engine */
	RL_VMM_HELLO = 1,  /* struct rl_vmm_hello */
	RL_VMM_REGION = 2, /* struct rl_vmm_region, 1 fd: one per region of guest RAM */
	RL_VMM_SHARED = 3, /* struct rl_vmm_shared_info, 2 fds: shared page, doorbell eventfd */
	RL_VMM_VCPU = 4, /* struct rl_vmm_vcpu, 1 fd to map the ring from; only with F_DIRTY_RING */
	RL_VMM_ONLINE = 5, /* nothing: everything was said */

	/* engine -> VMM */
	RL_VMM_SESSION_BEGIN = 16, /* struct rl_vmm_session: a migration starts */
	RL_VMM_LOG_START = 17,     /* log dirty pages of all slots */
	RL_VMM_LOG_STOP = 18,
	RL_VMM_PAUSE = 19,       /* reply when no vCPU runs and the VMM writes no guest memory */
	RL_VMM_RESUME = 20,      /* source, before COMMITTING only */
	RL_VMM_STATE_GET = 21,   /* reply carries struct rl_vmm_state and 1 fd (a memfd) */
	RL_VMM_STATE_PUT = 22,   /* struct rl_vmm_state, 1 fd: load it; all memory is in place */
	RL_VMM_COMMITTING = 23,  /* source: from here on never resume without RL_VMM_SESSION_END */
	RL_VMM_RUN = 24,         /* target: run the guest; the reply says that it runs */
	RL_VMM_SESSION_END = 25, /* struct rl_vmm_session_end */
};

/* Feature bits of rl_vmm_hello; unknown ones are an error. */
#define RL_VMM_FEAT_DIRTY_RING   (1ull << 0) /* KVM dirty ring layout, one ring per vCPU */
#define RL_VMM_FEAT_DIRTY_BITMAP (1ull << 1) /* KVM_GET/CLEAR_DIRTY_LOG through the doorbell */
#define RL_VMM_FEAT_ALL          (RL_VMM_FEAT_DIRTY_RING | RL_VMM_FEAT_DIRTY_BITMAP)

/* What the VMM's guest is doing; it survives a restart of ramliftd in the VMM. */
enum rl_vmm_phase {
	RL_VMM_RUNNING = 1,   /* the guest runs (or is paused by its user) here; may be a source */
	RL_VMM_INCOMING = 2,  /* empty; waits to be a target */
	RL_VMM_MIGRATING = 3, /* source of `session`, guest running */
	RL_VMM_PAUSED = 4,    /* source, paused by the engine, not committed */
	RL_VMM_COMMITTED = 5, /* source, COMMITTING seen: only the peer knows the outcome */
	RL_VMM_RECEIVING = 6, /* target, memory arriving */
	RL_VMM_READY = 7,     /* target, state loaded, waits for RUN */
	RL_VMM_MOVED = 8,     /* source after a completed migration: nothing left here */
};

struct rl_vmm_session {
	uint8_t session[16]; /* UUID of the migration */
	uint32_t is_target;  /* 0, 1 */
	uint32_t reserved;
	char peer[RL_VMM_PEER_BYTES]; /* "host:port" of the other ramliftd */
};

struct rl_vmm_hello {
	uint64_t features;
	uint8_t uuid[16];             /* the VM's */
	char name[RL_VMM_NAME_BYTES]; /* unique on the host; [A-Za-z0-9._-]+ */
	uint32_t phase;               /* enum rl_vmm_phase */
	uint32_t n_vcpus;
	struct rl_vmm_session last; /* of the present or last migration; zero: none */
	uint32_t last_outcome;      /* enum rl_vmm_outcome of `last` */
	uint32_t reserved;
};

struct rl_vmm_region {
	uint64_t gpn;
	uint64_t n_pages;
	uint64_t fd_offset; /* bytes */
	uint32_t page_size; /* of the backing: 4096, 2 MiB (hugetlb or THP), 1 GiB */
	uint32_t flags;
};
#define RL_VMM_REGION_HUGETLB (1u << 0)
#define RL_VMM_REGION_THP     (1u << 1)
#define RL_VMM_REGION_ZEROED  (1u << 2) /* nobody ever wrote it: reads as zeros */

struct rl_vmm_shared_info {
	uint64_t size; /* of the shared memfd, sealed against shrinking */
};

struct rl_vmm_vcpu {
	uint32_t index;
	uint32_t ring_entries; /* power of two, 2048..65536 */
	uint64_t ring_offset;  /* where in the fd: KVM_DIRTY_LOG_PAGE_OFFSET pages for a vCPU fd */
};

struct rl_vmm_state {
	uint64_t size; /* bytes in the memfd */
};

enum rl_vmm_outcome {
	RL_VMM_OUTCOME_NONE = 0,
	RL_VMM_COMPLETED = 1, /* source: the guest runs at the peer; target: it runs here */
	RL_VMM_ABORTED = 2,   /* source: resume if paused; target: forget all, back to INCOMING */
};

struct rl_vmm_session_end {
	uint32_t outcome;
	uint32_t reserved;
};

struct rl_vmm_status {
	int32_t code; /* 0 or -errno */
	char text[RL_VMM_TEXT_BYTES];
};

/* RL_VMM_STATE_GET's reply: status, then this. */
struct rl_vmm_state_reply {
	struct rl_vmm_status status;
	uint32_t reserved;
	struct rl_vmm_state state;
};

/*
 * The shared page. Both sides map it; every field has one writer; the other side treats it as hostile and
 * reads each value once. Atomic fields: release by the writer, acquire by the reader.
 */
#define RL_VMM_SHARED_MAGIC 0x31564c52u /* "RLV1" */

struct rl_vmm_slot {
	uint32_t slot;  /* as_id << 16 | id, as in a ring entry */
	uint32_t valid; /* 0: free */
	uint64_t gpn;   /* page of guest RAM (as in rl_vmm_region) that the slot's first page is */
	uint64_t n_pages;
	uint64_t
		bitmap; /* byte offset of its dirty bitmap in the shared memfd; FEAT_DIRTY_BITMAP */
};

enum rl_vmm_door_cmd {
	RL_VMM_DOOR_RESET_RINGS = 1, /* KVM_RESET_DIRTY_RINGS; result: entries reset */
	RL_VMM_DOOR_SYNC_BITMAP = 2, /* GET and CLEAR_DIRTY_LOG of every slot; result: 0 */
};

struct rl_vmm_shared {
	/* written by the VMM before SHARED is sent, then constant */
	uint32_t magic;
	uint32_t n_slots; /* entries of slot[], at most RL_VMM_MAX_SLOTS */

	/* the doorbell: the engine writes cmd, then req (+1), then the eventfd */
	uint32_t door_cmd;
	uint32_t pad0;
	uint64_t door_req;   /* engine */
	uint64_t door_ack;   /* VMM: = door_req when done */
	int64_t door_result; /* VMM: written before door_ack; -errno on failure */

	/* a slot was deleted: the VMM raises drain_req when KVM's delete has returned, and publishes the
	 * new table (and re-adds slots) only when drain_ack has caught up or the engine has gone */
	uint64_t drain_req; /* VMM */
	uint64_t drain_ack; /* engine: all ring entries up to then were taken by the old table */

	/* counters for statistics, VMM */
	uint64_t ring_full_exits;
	/* Is the guest running, or about to? Raised before a vCPU may run again, lowered once none does: what
	 * a VMM that died did with its guest. VMM */
	uint64_t guest_runs;
	uint64_t reserved[7];

	struct rl_vmm_slot slot[RL_VMM_MAX_SLOTS]; /* VMM */
};

/* An entry of a dirty ring, as linux/kvm.h's struct kvm_dirty_gfn. */
struct rl_vmm_dirty_gfn {
	uint32_t flags; /* 0 free, RL_VMM_GFN_DIRTY, RL_VMM_GFN_RESET */
	uint32_t slot;
	uint64_t offset; /* page in the slot */
};
#define RL_VMM_GFN_DIRTY 1u
#define RL_VMM_GFN_RESET 2u

_Static_assert(sizeof(struct rl_vmm_hdr) == RL_VMM_HDR_BYTES, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_session) == 152, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_hello) == 256, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_region) == 32, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_vcpu) == 16, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_status) == 260, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_state_reply) == 272, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_slot) == 32, "VMM socket ABI");
_Static_assert(offsetof(struct rl_vmm_shared, door_req) == 16, "VMM socket ABI");
_Static_assert(offsetof(struct rl_vmm_shared, slot) == 128, "VMM socket ABI");
_Static_assert(sizeof(struct rl_vmm_dirty_gfn) == 16, "KVM ABI");

#endif /* RAMLIFT_VMM_H */
