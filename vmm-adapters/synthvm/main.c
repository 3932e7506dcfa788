/* SPDX-License-Identifier: BSD-3-Clause */
/* synthvm: a VMM without KVM, whose guest is a known pattern. Options, the VMM socket's callbacks, reports. */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include <ramlift-vmm.h>

#include "backing.h"
#include "guest.h"

#define PAGE_BYTES   4096u
#define SIZE_2M      (2u << 20)
#define RING_ENTRIES 65536u

struct options {
	const char *name, *engine, *backing;
	uint64_t memory_bytes, working_set_bytes, seconds;
	uint32_t n_vcpus;
	bool incoming, json;
	bool work_given; /* an option that a target takes from its source */
	struct rl_synth_work work;
};

struct synthvm {
	struct options o;
	int ram_fd;
	uint8_t *ram;
	uint32_t page_size, region_flags;
	struct rl_synth_log log;
	struct rl_synth_guest *guest;
	struct rl_vmm *vmm; /* NULL without --engine */

	int event_fd; /* the socket thread has set one of these */
	atomic_bool arrived, moved;
	atomic_uint_least64_t ring_full;

	/* main thread */
	bool empty; /* a target whose guest has not come */
	uint64_t checked, wrong;
	uint64_t reported_writes;
};

static const char usage[] =
	"usage: synthvm --name NAME --memory SIZE [options]\n"
	"A stand-in for a VMM and its guest, for machines without KVM: threads write guest memory "
	"to a known\n"
	"pattern and fill dirty rings of KVM's layout; every page can be checked, here and after a "
	"migration.\n"
	"\n"
	"  --engine SOCKET        connect to ramliftd's vmm-socket; without it, write only\n"
	"  --incoming             start empty and wait to be a target; the writers' options come "
	"from the source\n"
	"  --backing KIND         plain (default), thp, hugetlb-2M, hugetlb-1G\n"
	"  --vcpus N              writer threads (1)\n"
	"  --rate N|max           pages written per second, by all of them; 0: idle (1000)\n"
	"  --pattern P            seq, random (default), hot: nine of ten writes to a tenth of the "
	"pages\n"
	"  --working-set SIZE     write only in so much memory (all); the rest is filled once\n"
	"  --content C            mixed (default), random, zero, text\n"
	"  --seed N               of contents and choices (1)\n"
	"  --seconds N            leave after so long\n"
	"  --json                 a last line for programs\n"
	"\n"
	"Once a second it prints a line of key=value. SIGUSR1: check all pages now. SIGTERM, "
	"SIGINT: check and\n"
	"leave. It also leaves when its guest has moved away. Exit status 0: no page was ever "
	"wrong.\n";

static int
bad(const char *option, const char *value, const char *wants)
{
	fprintf(stderr, "synthvm: --%s '%s': %s\n", option, value, wants);
	return -EINVAL;
}

static int
parse_number(const char *option, const char *text, uint64_t max, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(text, &end, 0);
	if (text[0] < '0' || text[0] > '9' || *end != 0 || errno != 0 || *out > max)
		return bad(option, text, "not a number, or too large");
	return 0;
}

static int
parse_size(const char *option, const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	uint32_t shift = 0;
	const char *unit;
	char *end;

	errno = 0;
	*bytes = strtoull(text, &end, 10);
	unit = *end != 0 ? strchr(units, *end) : NULL;
	if (unit != NULL) {
		shift = 10 * (uint32_t)(unit - units + 1);
		end++;
	}
	if (text[0] < '0' || text[0] > '9' || *end != 0 || errno != 0 || *bytes == 0 ||
	    *bytes > (uint64_t)INT64_MAX >> shift || (*bytes << shift) % PAGE_BYTES != 0)
		return bad(option, text, "a size in whole pages, as 256M or 1G");
	*bytes <<= shift;
	return 0;
}

static int
parse_choice(const char *option, const char *text, const char *const *names, int n, int *out)
{
	for (*out = 0; *out < n; (*out)++)
		if (strcmp(text, names[*out]) == 0)
			return 0;
	return bad(option, text, "not one of the kinds that --help names");
}

enum option_id {
	OPT_NAME = 1,
	OPT_MEMORY,
	OPT_BACKING,
	OPT_VCPUS,
	OPT_ENGINE,
	OPT_INCOMING,
	OPT_RATE,
	OPT_PATTERN,
	OPT_WORKING_SET,
	OPT_CONTENT,
	OPT_SEED,
	OPT_SECONDS,
	OPT_JSON,
	OPT_HELP,
};

static const struct option long_options[] = {
	{"name", required_argument, NULL, OPT_NAME},
	{"memory", required_argument, NULL, OPT_MEMORY},
	{"backing", required_argument, NULL, OPT_BACKING},
	{"vcpus", required_argument, NULL, OPT_VCPUS},
	{"engine", required_argument, NULL, OPT_ENGINE},
	{"incoming", no_argument, NULL, OPT_INCOMING},
	{"rate", required_argument, NULL, OPT_RATE},
	{"pattern", required_argument, NULL, OPT_PATTERN},
	{"working-set", required_argument, NULL, OPT_WORKING_SET},
	{"content", required_argument, NULL, OPT_CONTENT},
	{"seed", required_argument, NULL, OPT_SEED},
	{"seconds", required_argument, NULL, OPT_SECONDS},
	{"json", no_argument, NULL, OPT_JSON},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0},
};

/* Options of the writers: what a migrated guest brings along. */
static int
take_work_option(struct options *o, int id, const char *name)
{
	int choice = 0, err;

	o->work_given = true;
	switch (id) {
	case OPT_RATE:
		if (strcmp(optarg, "max") != 0)
			return parse_number(name, optarg, RL_SYNTH_RATE_LIMIT, &o->work.rate);
		o->work.rate = RL_SYNTH_RATE_MAX;
		return 0;
	case OPT_PATTERN:
		err = parse_choice(name, optarg, rl_synth_pattern_names, RL_SYNTH_N_PATTERNS,
				   &choice);
		o->work.pattern = (enum rl_synth_pattern)choice;
		return err;
	case OPT_CONTENT:
		err = parse_choice(name, optarg, rl_synth_content_names, RL_SYNTH_N_CONTENTS,
				   &choice);
		o->work.content = (enum rl_synth_content)choice;
		return err;
	case OPT_WORKING_SET:
		return parse_size(name, optarg, &o->working_set_bytes);
	default:
		return parse_number(name, optarg, UINT64_MAX, &o->work.seed);
	}
}

static int
take_option(struct options *o, int id, const char *name)
{
	uint64_t n = 0;
	int err = 0;

	switch (id) {
	case OPT_NAME:
		o->name = optarg;
		break;
	case OPT_MEMORY:
		err = parse_size(name, optarg, &o->memory_bytes);
		break;
	case OPT_BACKING:
		o->backing = optarg;
		break;
	case OPT_VCPUS:
		err = parse_number(name, optarg, RL_VMM_MAX_VCPUS, &n);
		o->n_vcpus = (uint32_t)n;
		break;
	case OPT_ENGINE:
		o->engine = optarg;
		break;
	case OPT_INCOMING:
		o->incoming = true;
		break;
	case OPT_SECONDS:
		err = parse_number(name, optarg, UINT32_MAX, &o->seconds);
		break;
	case OPT_JSON:
		o->json = true;
		break;
	default:
		err = take_work_option(o, id, name);
	}
	return err;
}

static int
parse_options(struct options *o, int argc, char **argv)
{
	int id, index = 0;

	*o = (struct options){
		.backing = "plain",
		.n_vcpus = 1,
		.work = {.pattern = RL_SYNTH_UNIFORM, .rate = 1000, .seed = 1},
	};
	while ((id = getopt_long(argc, argv, "", long_options, &index)) != -1) {
		if (id == OPT_HELP) {
			fputs(usage, stdout);
			exit(0);
		}
		if (id == '?' || take_option(o, id, long_options[index].name) != 0)
			return -EINVAL;
	}
	if (optind < argc)
		return bad("?", argv[optind], "no such argument");
	if (o->name == NULL || o->memory_bytes == 0 || o->n_vcpus == 0) {
		fprintf(stderr,
			"synthvm: --name and --memory must be given, and at least one vCPU\n");
		return -EINVAL;
	}
	if (o->incoming && (o->engine == NULL || o->work_given)) {
		fprintf(stderr,
			"synthvm: --incoming wants --engine, and takes --rate --pattern --content "
			"--working-set --seed from the source: leave them out\n");
		return -EINVAL;
	}
	o->work.working_set_pages = o->working_set_bytes / PAGE_BYTES;
	return 0;
}

/* ---- callbacks of the VMM socket ---- */

static int
on_log_start(void *ctx, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	rl_synth_log_start(&s->log);
	return 0;
}

static int
on_log_stop(void *ctx, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	rl_synth_log_stop(&s->log);
	return 0;
}

static int
on_pause(void *ctx, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	rl_synth_hold(s->guest);
	return 0;
}

static int
on_resume(void *ctx, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	rl_synth_release(s->guest);
	return 0;
}

static int
on_state_get(void *ctx, int *memfd, uint64_t *size, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	return rl_synth_save(s->guest, memfd, size);
}

static int
on_state_put(void *ctx, int memfd, uint64_t size, char *text)
{
	struct synthvm *s = ctx;

	return rl_synth_load(s->guest, memfd, size, text);
}

/* The main thread checks all pages first and lets the writers go then: no write can hide a page that
 * arrived wrong. */
static int
on_run(void *ctx, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	s->arrived = true;
	eventfd_write(s->event_fd, 1);
	return 0;
}

static int
on_reset(void *ctx, char *text)
{
	struct synthvm *s = ctx;

	(void)text;
	rl_synth_reset(s->guest);
	return 0;
}

static void
on_moved(void *ctx)
{
	struct synthvm *s = ctx;

	s->moved = true;
	eventfd_write(s->event_fd, 1);
}

static int64_t
on_reset_rings(void *ctx)
{
	struct synthvm *s = ctx;

	return rl_synth_log_reset(&s->log);
}

static void
on_log(void *ctx, const char *line)
{
	struct synthvm *s = ctx;

	fprintf(stderr, "synthvm %s: %s\n", s->o.name, line);
}

static const struct rl_vmm_ops vmm_ops = {
	.log_start = on_log_start,
	.log_stop = on_log_stop,
	.pause = on_pause,
	.resume = on_resume,
	.state_get = on_state_get,
	.state_put = on_state_put,
	.run = on_run,
	.reset = on_reset,
	.moved = on_moved,
	.reset_rings = on_reset_rings,
	.log = on_log,
};

static void
on_ring_full(void *ctx)
{
	struct synthvm *s = ctx;

	s->ring_full++;
	if (s->vmm != NULL)
		rl_vmm_ring_full(s->vmm);
}

/* ---- setting up ---- */

static int
failed(const struct synthvm *s, int err, const char *what)
{
	fprintf(stderr, "synthvm %s: %s: %s\n", s->o.name, what, strerror(-err));
	return err;
}

static int
make_guest(struct synthvm *s)
{
	char text[RL_VMM_TEXT_BYTES];
	uint64_t n_pages = s->o.memory_bytes / PAGE_BYTES;
	struct rl_synth_opts opts;
	int err;

	err = rl_backing_open(s->o.backing, s->o.memory_bytes, &s->ram_fd, &s->page_size,
			      &s->region_flags, text);
	if (err != 0) {
		fprintf(stderr, "synthvm %s: %s\n", s->o.name, text);
		return err;
	}
	s->ram = rl_backing_map(s->ram_fd, s->o.memory_bytes,
				s->page_size > SIZE_2M ? s->page_size : SIZE_2M);
	if (s->ram == NULL)
		return failed(s, -errno, "cannot map guest memory");
	err = rl_synth_log_init(&s->log, n_pages, s->o.n_vcpus, RING_ENTRIES);
	if (err != 0)
		return failed(s, err, "cannot make dirty rings");
	opts = (struct rl_synth_opts){
		.ram = s->ram,
		.n_pages = n_pages,
		.n_vcpus = s->o.n_vcpus,
		.held = s->o.incoming,
		.work = s->o.work,
		.log = &s->log,
		.ring_full = on_ring_full,
		.ctx = s,
	};
	err = rl_synth_create(&opts, &s->guest);
	if (err != 0)
		return failed(s, err, "no guest of that --memory, --working-set and --vcpus");
	return 0;
}

static int
describe(struct synthvm *s)
{
	struct rl_vmm_region region = {
		.n_pages = s->o.memory_bytes / PAGE_BYTES,
		.page_size = s->page_size,
		.flags = s->region_flags,
	};
	int err;

	err = rl_vmm_add_region(s->vmm, &region, s->ram_fd);
	for (uint32_t i = 0; i < s->o.n_vcpus && err == 0; i++) {
		struct rl_vmm_vcpu vcpu = {
			.index = i,
			.ring_entries = RING_ENTRIES,
			.ring_offset = (uint64_t)i * RING_ENTRIES * sizeof(struct rl_vmm_dirty_gfn),
		};

		err = rl_vmm_add_vcpu(s->vmm, &vcpu, s->log.fd);
	}
	if (err == 0)
		err = rl_vmm_slot_add(s->vmm, 0, 0, region.n_pages);
	return err;
}

static int
make_vmm(struct synthvm *s)
{
	struct rl_vmm_opts opts = {
		.engine_socket = s->o.engine,
		.name = s->o.name,
		.incoming = s->o.incoming,
		.features = RL_VMM_FEAT_DIRTY_RING,
		.n_vcpus = s->o.n_vcpus,
		.ops = &vmm_ops,
		.ctx = s,
	};
	int err;

	if (getrandom(opts.uuid, sizeof(opts.uuid), 0) != sizeof(opts.uuid))
		return failed(s, -errno, "getrandom");
	err = rl_vmm_create(&opts, &s->vmm);
	if (err != 0)
		return failed(s, err, "--name (letters, digits, . _ -) or --engine");
	err = describe(s);
	return err == 0 ? 0 : failed(s, err, "cannot describe the guest to the VMM socket");
}

/* ---- reports ---- */

static const char *
outcome(const struct synthvm *s)
{
	if (s->moved)
		return "moved";
	return s->empty ? "incoming" : "running";
}

static void
check(struct synthvm *s)
{
	struct rl_synth_verdict v;

	rl_synth_check(s->guest, &v);
	s->checked += v.checked;
	s->wrong += v.wrong;
	printf("synthvm %s: %s, %lu pages checked, %lu wrong\n", s->o.name, outcome(s), v.checked,
	       v.wrong);
	if (v.wrong > 0)
		fprintf(stderr, "synthvm %s: ERROR %s\n", s->o.name, v.first);
}

static void
progress(struct synthvm *s, uint64_t second)
{
	int phase = s->vmm != NULL ? (int)rl_vmm_phase(s->vmm) : RL_VMM_RUNNING;
	uint64_t writes = rl_synth_writes(s->guest);

	printf("synthvm %s: t=%lu phase=%s writes=%lu writes_s=%lu ring_full=%lu wrong=%lu\n",
	       s->o.name, second, rl_vmm_phase_name(phase), writes,
	       writes > s->reported_writes ? writes - s->reported_writes : 0, s->ring_full,
	       s->wrong);
	s->reported_writes = writes;
}

static int
finish(struct synthvm *s)
{
	/* The engine lets go of the guest first; no callback comes any more. */
	if (s->vmm != NULL)
		rl_vmm_stop(s->vmm);
	if (s->moved)
		printf("synthvm %s: the guest has moved\n", s->o.name);
	if (!s->empty)
		check(s);
	if (s->o.json)
		printf("{\"name\":\"%s\",\"writes\":%lu,\"checked\":%lu,\"wrong\":%lu,\"outcome\":"
		       "\"%s\"}\n",
		       s->o.name, rl_synth_writes(s->guest), s->checked, s->wrong, outcome(s));
	rl_vmm_destroy(s->vmm);
	rl_synth_destroy(s->guest);
	rl_synth_log_fini(&s->log);
	return s->wrong == 0 ? 0 : 1;
}

/* ---- the main thread ---- */

static uint64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void
welcome(struct synthvm *s)
{
	s->arrived = false;
	s->empty = false;
	s->reported_writes = rl_synth_writes(s->guest); /* those were not ours */
	check(s);
	rl_synth_release(s->guest);
}

/* Until it is time to leave. */
static void
watch(struct synthvm *s, int signal_fd)
{
	struct pollfd p[2] = {{.fd = signal_fd, .events = POLLIN},
			      {.fd = s->event_fd, .events = POLLIN}};
	uint64_t start_ms = now_ms(), second = 0;
	struct signalfd_siginfo sig;
	eventfd_t events;

	while (!s->moved && (s->o.seconds == 0 || second < s->o.seconds)) {
		uint64_t next_ms = start_ms + (second + 1) * 1000, now = now_ms();

		if (now >= next_ms) {
			progress(s, ++second);
			continue;
		}
		if (poll(p, 2, (int)(next_ms - now)) <= 0)
			continue;
		if (p[1].revents != 0)
			eventfd_read(s->event_fd, &events);
		if (s->arrived)
			welcome(s);
		if (p[0].revents == 0 || read(signal_fd, &sig, sizeof(sig)) != sizeof(sig))
			continue;
		if (sig.ssi_signo != SIGUSR1)
			return;
		if (!s->empty)
			check(s);
	}
}

/* Blocked in all threads and read here. */
static int
open_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

int
main(int argc, char **argv)
{
	static struct synthvm s;
	int signal_fd, err;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (parse_options(&s.o, argc, argv) != 0)
		return 2;
	s.empty = s.o.incoming;
	signal_fd = open_signals();
	s.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (signal_fd < 0 || s.event_fd < 0) {
		failed(&s, -errno, "signalfd, eventfd");
		return 2;
	}
	if (make_guest(&s) != 0 || (s.o.engine != NULL && make_vmm(&s) != 0))
		return 2;
	err = rl_synth_start(s.guest);
	if (err == 0 && s.vmm != NULL)
		err = rl_vmm_start(s.vmm);
	if (err != 0) {
		failed(&s, err, "cannot start");
		return 2;
	}
	watch(&s, signal_fd);
	return finish(&s);
}
