/* SPDX-License-Identifier: BSD-3-Clause */
/* labvm: options, the main loop, the end. */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <ramlift/version.h>

#include "labvm.h"

#define MIN_MEMORY_BYTES (16ull << 20)
#define MAX_MEMORY_BYTES (1ull << 40)
#define DEFAULT_ENGINE   "/run/ramlift/vmm.sock"

static const char help[] =
	"Usage: labvm run --name NAME --kernel ELF [OPTION]...\n"
	"       labvm run --name NAME --incoming [OPTION]...\n"
	"A small KVM virtual machine that ramliftd can move to another host.\n"
	"\n"
	"  --name NAME          unique on this host: letters, digits, . _ -\n"
	"  --memory SIZE        RAM, e.g. 512M or 4G (default 1G)\n"
	"  --backing KIND       hugetlb-2M, hugetlb-1G, thp or plain (default plain)\n"
	"  --vcpus N            1 to 64 (default 1)\n"
	"  --kernel ELF         a multiboot 1 kernel, e.g. ramlift-guest\n"
	"  --append TEXT        its command line\n"
	"  --load FILE@GPA      put FILE at this guest-physical address; may be repeated\n"
	"  --serial TARGET      COM1: stdio, null, unix:PATH or file:PATH (default stdio)\n"
	"  --engine SOCKET      ramliftd's vmm-socket (default " DEFAULT_ENGINE ")\n"
	"  --incoming           start empty and wait for a guest\n"
	"  --dirty ring|bitmap  how KVM reports written pages (default ring)\n"
	"  --ring-entries N     per vCPU, a power of two, 2048 to 65536 (default 65536)\n"
	"  --json               events on stderr as JSON, one object a line\n"
	"  --help, --version\n"
	"\n"
	"The guest runs whether ramliftd is there or not. Before --append the kernel's command "
	"line gets\n"
	"tsc_khz=N cpus=N. Output that nobody reads from COM1 is dropped, never waited for.\n"
	"\n"
	"Ports: 0x3f8 COM1 (IRQ 4); 0xf4 ends labvm with status (value << 1) | 1; 0x64 <- 0xfe "
	"(reset)\n"
	"ends it with 0. The lab device: reading 0x5f0 gives 0x42414c52; writing 1 there makes "
	"labvm delete\n"
	"the upper memory slot and add it again under another id; writing N to 0x5f4 idles the "
	"vCPU for N us.\n"
	"\n"
	"Exit status: 0 the guest reset itself, or moved to another host, or labvm was told to "
	"stop;\n"
	"2 labvm could not start; 4 the guest crashed; odd: from port 0xf4.\n";

enum option_id {
	OPT_NAME = 256,
	OPT_MEMORY,
	OPT_BACKING,
	OPT_VCPUS,
	OPT_KERNEL,
	OPT_APPEND,
	OPT_LOAD,
	OPT_SERIAL,
	OPT_ENGINE,
	OPT_INCOMING,
	OPT_DIRTY,
	OPT_RING_ENTRIES,
	OPT_JSON,
	OPT_HELP,
	OPT_VERSION,
};

static const struct option options[] = {
	{"name", required_argument, NULL, OPT_NAME},
	{"memory", required_argument, NULL, OPT_MEMORY},
	{"backing", required_argument, NULL, OPT_BACKING},
	{"vcpus", required_argument, NULL, OPT_VCPUS},
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"append", required_argument, NULL, OPT_APPEND},
	{"load", required_argument, NULL, OPT_LOAD},
	{"serial", required_argument, NULL, OPT_SERIAL},
	{"engine", required_argument, NULL, OPT_ENGINE},
	{"incoming", no_argument, NULL, OPT_INCOMING},
	{"dirty", required_argument, NULL, OPT_DIRTY},
	{"ring-entries", required_argument, NULL, OPT_RING_ENTRIES},
	{"json", no_argument, NULL, OPT_JSON},
	{"help", no_argument, NULL, OPT_HELP},
	{"version", no_argument, NULL, OPT_VERSION},
	{NULL, 0, NULL, 0},
};

static bool
parse_number(const char *text, uint64_t max, uint64_t *value, const char **rest)
{
	char *end;

	errno = 0;
	*value = strtoull(text, &end, 0);
	if (rest)
		*rest = end;
	return *text >= '0' && *text <= '9' && !errno && *value <= max && (rest || !*end);
}

static bool
parse_size(const char *text, uint64_t *bytes)
{
	static const char suffixes[] = "KMG";
	const char *rest, *suffix;

	if (!parse_number(text, MAX_MEMORY_BYTES, bytes, &rest))
		return false;
	if (*rest) {
		suffix = strchr(suffixes, *rest);
		if (!suffix || rest[1])
			return false;
		*bytes <<= 10 * (suffix - suffixes + 1);
	}
	return *bytes >= MIN_MEMORY_BYTES && *bytes <= MAX_MEMORY_BYTES && *bytes % 4096 == 0;
}

static int
parse_load(struct labvm_opts *opts, char *value, char *text)
{
	char *at = strrchr(value, '@');
	struct labvm_load *load = &opts->load[opts->n_loads];

	if (opts->n_loads == LABVM_MAX_LOADS)
		return refuse(text, -E2BIG, "--load: at most %u files", LABVM_MAX_LOADS);
	if (!at || !parse_number(at + 1, UINT64_MAX, &load->gpa, NULL))
		return refuse(text, -EINVAL, "--load %s: say FILE@GPA, e.g. disk.img@0x10000000",
			      value);
	*at = 0;
	load->path = value;
	opts->n_loads++;
	return 0;
}

static int
parse_value(struct labvm_opts *opts, int id, char *value, char *text)
{
	uint64_t n;

	switch (id) {
	case OPT_MEMORY:
		if (!parse_size(value, &opts->memory_bytes))
			return refuse(text, -EINVAL, "--memory %s: say 16M to 1024G, e.g. 4G",
				      value);
		break;
	case OPT_VCPUS:
		if (!parse_number(value, LABVM_MAX_VCPUS, &n, NULL) || !n)
			return refuse(text, -EINVAL, "--vcpus %s: say 1 to %u", value,
				      LABVM_MAX_VCPUS);
		opts->n_vcpus = (uint32_t)n;
		break;
	case OPT_RING_ENTRIES:
		if (!parse_number(value, 65536, &n, NULL) || n < 2048 || n & (n - 1))
			return refuse(text, -EINVAL,
				      "--ring-entries %s: say a power of two, 2048 to 65536",
				      value);
		opts->ring_entries = (uint32_t)n;
		break;
	case OPT_DIRTY:
		opts->bitmap = !strcmp(value, "bitmap");
		if (!opts->bitmap && strcmp(value, "ring"))
			return refuse(text, -EINVAL, "--dirty %s: say ring or bitmap", value);
		break;
	case OPT_LOAD:
		return parse_load(opts, value, text);
	}
	return 0;
}

static int
parse_options(struct labvm_opts *opts, int argc, char **argv, char *text)
{
	int id, err = 0;

	while (!err && (id = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (id) {
		case OPT_NAME:
			opts->name = optarg;
			break;
		case OPT_BACKING:
			opts->backing = optarg;
			break;
		case OPT_KERNEL:
			opts->kernel = optarg;
			break;
		case OPT_APPEND:
			opts->append = optarg;
			break;
		case OPT_SERIAL:
			opts->serial = optarg;
			break;
		case OPT_ENGINE:
			opts->engine = optarg;
			break;
		case OPT_INCOMING:
			opts->incoming = true;
			break;
		case OPT_JSON:
			opts->json = true;
			break;
		case OPT_HELP:
			fputs(help, stdout);
			exit(LABVM_EXIT_OK);
		case OPT_VERSION:
			puts("labvm " RAMLIFT_VERSION);
			exit(LABVM_EXIT_OK);
		case '?':
			return refuse(text, -EINVAL, "see labvm --help");
		default:
			err = parse_value(opts, id, optarg, text);
		}
	}
	return err;
}

static int
check_options(const struct labvm_opts *opts, int argc, char **argv, char *text)
{
	static const char name_chars[] = "abcdefghijklmnopqrstuvwxyz"
					 "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
	size_t len = strlen(opts->name);

	if (optind != argc - 1 || strcmp(argv[optind], "run"))
		return refuse(text, -EINVAL, "say labvm run --name NAME ...; see labvm --help");
	if (!len || len >= RL_VMM_NAME_BYTES || strspn(opts->name, name_chars) != len)
		return refuse(text, -EINVAL, "--name: say 1 to %u letters, digits, . _ -",
			      RL_VMM_NAME_BYTES - 1);
	if (opts->incoming && (opts->kernel || opts->n_loads))
		return refuse(text, -EINVAL,
			      "--incoming: the guest comes from elsewhere, without --kernel and "
			      "--load");
	if (!opts->incoming && !opts->kernel)
		return refuse(text, -EINVAL, "--kernel ELF is missing (or --incoming)");
	return 0;
}

static void
take_input(struct vm *vm)
{
	uint8_t bytes[UART_FIFO_BYTES];
	uint32_t room;
	size_t n;

	pthread_mutex_lock(&vm->serial.lock);
	room = uart_room(&vm->uart);
	pthread_mutex_unlock(&vm->serial.lock);
	n = serial_receive(&vm->serial, bytes, room);
	pthread_mutex_lock(&vm->serial.lock);
	for (size_t i = 0; i < n; i++)
		uart_receive(&vm->uart, bytes[i]);
	if (uart_irq(&vm->uart))
		vm_set_uart_irq(vm, true);
	pthread_mutex_unlock(&vm->serial.lock);
}

static void
handle_wake(struct vm *vm, char *text)
{
	eventfd_t n;

	eventfd_read(vm->wake_fd, &n);
	if (atomic_exchange(&vm->want_reslot, false) && vm_reslot(vm, text)) {
		event(vm->opts, "failed", "%s", text);
		vm_leave(vm, LABVM_EXIT_CRASHED);
	}
}

static void
main_loop(struct vm *vm, int signal_fd, char *text)
{
	while (!vm->leaving) {
		struct pollfd pfd[4] = {
			{.fd = vm->wake_fd, .events = POLLIN},
			{.fd = signal_fd, .events = POLLIN},
			{.fd = vm->serial.listen_fd, .events = POLLIN},
			{.fd = -1, .events = POLLIN},
		};

		pthread_mutex_lock(&vm->serial.lock);
		if (uart_room(&vm->uart))
			pfd[3].fd = vm->serial.in_fd;
		pthread_mutex_unlock(&vm->serial.lock);
		if (poll(pfd, 4, -1) < 0)
			continue; /* EINTR */
		if (pfd[0].revents)
			handle_wake(vm, text);
		if (pfd[1].revents) {
			event(vm->opts, "stopped", "told to stop");
			vm_leave(vm, LABVM_EXIT_OK);
		}
		if (pfd[3].revents)
			take_input(vm);
		if (pfd[2].revents)
			serial_accept(&vm->serial);
	}
}

static int
start(struct vm *vm, char *text)
{
	int err = adapter_create(vm, text);

	if (!err)
		err = vm_add_slots(vm, text);
	if (!err && !vm->opts->incoming)
		err = boot_load(vm, text);
	if (!err) {
		err = rl_vmm_start(vm->rl);
		if (err)
			refuse(text, err, "libramlift-vmm: %s", strerror(-err));
	}
	if (!err)
		err = vcpu_start_all(vm, text);
	if (err)
		return err;
	if (vm->opts->incoming) {
		event(vm->opts, "incoming", "waits for a guest");
		return 0;
	}
	event(vm->opts, "booted", "%llu MiB (%s), %u vCPUs, dirty %s: runs",
	      (unsigned long long)(vm->opts->memory_bytes >> 20), vm->opts->backing, vm->n_vcpus,
	      vm->opts->bitmap ? "bitmap" : "ring");
	vm_release(vm);
	return 0;
}

/* Before any thread: SIGINT and the like come by descriptor, to main. */
static int
catch_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

static int
run(const struct labvm_opts *opts, struct vm *vm, char *text)
{
	int err, signal_fd = catch_signals();

	err = signal_fd < 0 ? refuse(text, -errno, "signalfd: %s", strerror(errno)) : 0;
	if (!err)
		err = vm_create(vm, opts, text);
	if (!err)
		err = serial_open(&vm->serial, opts->serial, text);
	if (err)
		goto out;
	err = start(vm, text);
	if (!err)
		main_loop(vm, signal_fd, text);
	if (vm->rl)
		rl_vmm_stop(vm->rl);
	vcpu_stop_all(vm);
	if (vm->rl)
		rl_vmm_destroy(vm->rl);
	if (vm->serial.dropped)
		event(opts, "dropped", "serial: nobody read %llu bytes",
		      (unsigned long long)vm->serial.dropped);
	if (vm->reslots)
		event(opts, "reslots", "the upper memory slot was replaced %u times", vm->reslots);
	serial_close(&vm->serial);
	vm_destroy(vm);
out:
	return err;
}

int
main(int argc, char **argv)
{
	static struct vm vm;
	struct labvm_opts opts = {
		.name = "",
		.backing = "plain",
		.append = "",
		.serial = "stdio",
		.engine = DEFAULT_ENGINE,
		.memory_bytes = 1ull << 30,
		.n_vcpus = 1,
		.ring_entries = 65536,
	};
	char text[RL_VMM_TEXT_BYTES] = "";
	int err;

	err = parse_options(&opts, argc, argv, text);
	if (!err)
		err = check_options(&opts, argc, argv, text);
	if (!err)
		err = run(&opts, &vm, text);
	if (err) {
		event(&opts, "failed", "%s", text);
		return LABVM_EXIT_FAILED;
	}
	return vm.exit_status;
}
