/* SPDX-License-Identifier: BSD-3-Clause */
/* The synthetic guest: vCPU threads that write, the check, device state. */
#include "guest.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S     1000000000ull
#define SLICE_NS     1000000ull /* a paced vCPU wakes this often */
#define IDLE_NS      100000000ull
#define CATCH_UP_NS  10000000ull /* it makes up for no more lost time than this */
#define RING_FULL_NS 100000
#define MAX_BURST    256u /* pages between two looks at the clock */

#define STATE_MAGIC  0x314d565448545953ull /* "SYNTHVM1", in a manner of speaking */

const char *const rl_synth_pattern_names[RL_SYNTH_N_PATTERNS] = {
	[RL_SYNTH_SEQ] = "seq",
	[RL_SYNTH_UNIFORM] = "random",
	[RL_SYNTH_HOT] = "hot",
};

/* The device state's layout. */
struct state_head {
	uint64_t magic;
	uint64_t n_pages, n_vcpus;
	uint64_t content, pattern, seed, rate, working_set_pages;
};
struct state_vcpu {
	uint64_t rng, cursor;
	uint64_t filled; /* of its own pages, how many got their first content */
	uint64_t writes; /* in all */
};
_Static_assert(sizeof(struct state_head) == 64, "device state ABI");
_Static_assert(sizeof(struct state_vcpu) == 32, "device state ABI");

struct vcpu {
	struct rl_synth_guest *guest;
	uint32_t index;
	pthread_t thread;
	struct state_vcpu s;          /* the thread's; anybody's while held */
	atomic_uint_least64_t writes; /* a copy of s.writes for [any] */
	_Alignas(64) uint64_t page[RL_SYNTH_PAGE_BYTES / 8];
};

struct rl_synth_guest {
	/* set at create, then constant */
	struct rl_synth_opts o;
	uint64_t table_pages, data_pages;
	uint32_t *table; /* in guest memory */
	struct vcpu *vcpu;
	uint32_t n_started;

	struct rl_synth_work work; /* changes while held only */

	pthread_mutex_t lock;
	pthread_cond_t changed;
	atomic_uint holds;
	uint32_t n_parked;
	atomic_bool quit;
};

static uint64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

/* How many of the first @n data pages belong to @v. */
static uint64_t
own_pages(const struct vcpu *v, uint64_t n)
{
	return (n + v->guest->o.n_vcpus - 1 - v->index) / v->guest->o.n_vcpus;
}

static uint64_t
page_of(const struct vcpu *v, uint64_t k)
{
	return v->guest->table_pages + k * v->guest->o.n_vcpus + v->index;
}

static void
write_page(struct vcpu *v, uint64_t page)
{
	struct rl_synth_guest *g = v->guest;
	uint64_t in_table = page * sizeof(uint32_t) / RL_SYNTH_PAGE_BYTES;
	uint32_t generation = g->table[page] + 1;

	rl_synth_fill(v->page, g->work.content, g->work.seed, page, generation);
	rl_synth_log_begin(g->o.log, v->index, page);
	memcpy(g->o.ram + page * RL_SYNTH_PAGE_BYTES, v->page, RL_SYNTH_PAGE_BYTES);
	rl_synth_log_end(g->o.log, page);

	rl_synth_log_begin(g->o.log, v->index, in_table);
	g->table[page] = generation;
	rl_synth_log_end(g->o.log, in_table);
	v->writes = ++v->s.writes;
}

static uint64_t
below(struct vcpu *v, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)rl_synth_rand(&v->s.rng) * n) >> 64);
}

static uint64_t
choose(struct vcpu *v)
{
	uint64_t n = own_pages(v, v->guest->work.working_set_pages);
	uint64_t tenth = n / 10 > 0 ? n / 10 : 1;

	switch (v->guest->work.pattern) {
	case RL_SYNTH_UNIFORM:
		return page_of(v, below(v, n));
	case RL_SYNTH_HOT:
		return page_of(v, below(v, below(v, 10) != 0 ? tenth : n));
	default:
		return page_of(v, v->s.cursor++ % n);
	}
}

static bool
filling(const struct vcpu *v)
{
	return v->guest->work.content != RL_SYNTH_ZERO &&
	       v->s.filled < own_pages(v, v->guest->data_pages);
}

/* Wait @ns, or until somebody wants something. */
static void
doze(struct rl_synth_guest *g, uint64_t ns)
{
	uint64_t until_ns = now_ns() + ns;
	struct timespec ts = {.tv_sec = (time_t)(until_ns / NS_PER_S),
			      .tv_nsec = (long)(until_ns % NS_PER_S)};

	pthread_mutex_lock(&g->lock);
	if (g->holds == 0 && !g->quit)
		pthread_cond_timedwait(&g->changed, &g->lock, &ts);
	pthread_mutex_unlock(&g->lock);
}

static void
park(struct rl_synth_guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->n_parked++;
	pthread_cond_broadcast(&g->changed);
	while (g->holds > 0 && !g->quit)
		pthread_cond_wait(&g->changed, &g->lock);
	g->n_parked--;
	pthread_mutex_unlock(&g->lock);
}

/* Pages due by the clock; @paid_ns is up to when they were written. */
static uint64_t
due_pages(const struct rl_synth_guest *g, uint64_t *paid_ns)
{
	uint64_t rate = g->work.rate / g->o.n_vcpus, now = now_ns(), n;

	if (g->work.rate == RL_SYNTH_RATE_MAX)
		return MAX_BURST;
	if (rate == 0)
		rate = g->work.rate > 0;
	if (now - *paid_ns > CATCH_UP_NS)
		*paid_ns = now - CATCH_UP_NS;
	if (rate == 0)
		return 0;
	n = (now - *paid_ns) * rate / NS_PER_S;
	if (n > MAX_BURST)
		n = MAX_BURST;
	*paid_ns += n * NS_PER_S / rate;
	return n;
}

static void
wait_for_ring(struct rl_synth_guest *g)
{
	const struct timespec nap = {.tv_nsec = RING_FULL_NS};

	g->o.ring_full(g->o.ctx);
	nanosleep(&nap, NULL);
}

static void *
vcpu_main(void *arg)
{
	struct vcpu *v = arg;
	struct rl_synth_guest *g = v->guest;
	uint64_t paid_ns = now_ns();

	while (!g->quit) {
		uint64_t n;

		if (g->holds > 0) {
			park(g);
			paid_ns = now_ns();
			continue;
		}
		if (rl_synth_log_full(g->o.log, v->index)) {
			wait_for_ring(g);
			continue;
		}
		if (filling(v)) {
			write_page(v, page_of(v, v->s.filled++));
			continue;
		}
		n = due_pages(g, &paid_ns);
		if (n == 0)
			doze(g, g->work.rate == 0 ? IDLE_NS : SLICE_NS);
		for (; n > 0 && g->holds == 0 && !rl_synth_log_full(g->o.log, v->index); n--)
			write_page(v, choose(v));
	}
	return NULL;
}

static void
init_state(struct rl_synth_guest *g)
{
	g->work = g->o.work;
	if (g->work.working_set_pages == 0)
		g->work.working_set_pages = g->data_pages;
	for (uint32_t i = 0; i < g->o.n_vcpus; i++) {
		struct vcpu *v = &g->vcpu[i];

		memset(&v->s, 0, sizeof(v->s));
		v->s.rng = g->work.seed + i * 0x9e3779b97f4a7c15ull;
		v->writes = 0;
	}
}

int
rl_synth_create(const struct rl_synth_opts *opts, struct rl_synth_guest **out)
{
	uint64_t per_page = RL_SYNTH_PAGE_BYTES / sizeof(uint32_t);
	uint64_t table_pages = (opts->n_pages + per_page - 1) / per_page;
	pthread_condattr_t attr;
	struct rl_synth_guest *g;

	*out = NULL;
	if (opts->n_vcpus == 0 || opts->n_pages < table_pages + opts->n_vcpus ||
	    opts->work.working_set_pages > opts->n_pages - table_pages ||
	    (opts->work.working_set_pages > 0 && opts->work.working_set_pages < opts->n_vcpus))
		return -EINVAL;
	g = calloc(1, sizeof(*g));
	if (g == NULL)
		return -ENOMEM;
	g->vcpu = aligned_alloc(64, opts->n_vcpus * sizeof(*g->vcpu));
	if (g->vcpu == NULL) {
		free(g);
		return -ENOMEM;
	}
	memset(g->vcpu, 0, opts->n_vcpus * sizeof(*g->vcpu));
	g->o = *opts;
	g->table_pages = table_pages;
	g->data_pages = opts->n_pages - table_pages;
	g->table = (uint32_t *)(void *)opts->ram;
	g->holds = opts->held;
	for (uint32_t i = 0; i < opts->n_vcpus; i++) {
		g->vcpu[i].guest = g;
		g->vcpu[i].index = i;
	}
	init_state(g);
	pthread_mutex_init(&g->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&g->changed, &attr);
	pthread_condattr_destroy(&attr);
	*out = g;
	return 0;
}

int
rl_synth_start(struct rl_synth_guest *g)
{
	int err;

	while (g->n_started < g->o.n_vcpus) {
		struct vcpu *v = &g->vcpu[g->n_started];

		err = pthread_create(&v->thread, NULL, vcpu_main, v);
		if (err != 0)
			return -err;
		g->n_started++;
	}
	return 0;
}

void
rl_synth_destroy(struct rl_synth_guest *g)
{
	if (g == NULL)
		return;
	pthread_mutex_lock(&g->lock);
	g->quit = true;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	for (uint32_t i = 0; i < g->n_started; i++)
		pthread_join(g->vcpu[i].thread, NULL);
	pthread_cond_destroy(&g->changed);
	pthread_mutex_destroy(&g->lock);
	free(g->vcpu);
	free(g);
}

void
rl_synth_hold(struct rl_synth_guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->holds++;
	pthread_cond_broadcast(&g->changed);
	while (g->n_parked < g->n_started)
		pthread_cond_wait(&g->changed, &g->lock);
	pthread_mutex_unlock(&g->lock);
}

void
rl_synth_release(struct rl_synth_guest *g)
{
	pthread_mutex_lock(&g->lock);
	g->holds--;
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
}

static void note_wrong(struct rl_synth_verdict *v, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void
note_wrong(struct rl_synth_verdict *v, const char *fmt, ...)
{
	va_list ap;

	if (v->wrong++ > 0)
		return;
	va_start(ap, fmt);
	vsnprintf(v->first, sizeof(v->first), fmt, ap);
	va_end(ap);
}

void
rl_synth_check(struct rl_synth_guest *g, struct rl_synth_verdict *v)
{
	_Alignas(64) uint64_t want[RL_SYNTH_PAGE_BYTES / 8];
	uint64_t sum = 0, writes = 0;

	memset(v, 0, sizeof(*v));
	rl_synth_hold(g);
	for (uint64_t page = 0; page < g->table_pages; page++)
		if (g->table[page] != 0)
			note_wrong(v, "entry %lu of the table, which has no page, is %u", page,
				   g->table[page]);
	for (uint64_t page = g->table_pages; page < g->o.n_pages; page++) {
		const uint8_t *at = g->o.ram + page * RL_SYNTH_PAGE_BYTES;
		uint32_t generation = g->table[page];
		uint64_t head[2];

		sum += generation;
		rl_synth_fill(want, g->work.content, g->work.seed, page, generation);
		if (memcmp(at, want, RL_SYNTH_PAGE_BYTES) == 0)
			continue;
		memcpy(head, at, sizeof(head));
		note_wrong(v, "page %lu: generation %u by the table, holds page %lu generation %lu",
			   page, generation, head[0], head[1]);
	}
	for (uint32_t i = 0; i < g->o.n_vcpus; i++)
		writes += g->vcpu[i].s.writes;
	if (sum != writes)
		note_wrong(v, "the table counts %lu writes, the vCPUs %lu", sum, writes);
	v->checked = g->o.n_pages;
	rl_synth_release(g);
}

uint64_t
rl_synth_writes(const struct rl_synth_guest *g)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < g->o.n_vcpus; i++)
		n += g->vcpu[i].writes;
	return n;
}

int
rl_synth_save(struct rl_synth_guest *g, int *memfd, uint64_t *size)
{
	struct state_head head = {
		.magic = STATE_MAGIC,
		.n_pages = g->o.n_pages,
		.n_vcpus = g->o.n_vcpus,
		.content = g->work.content,
		.pattern = g->work.pattern,
		.seed = g->work.seed,
		.rate = g->work.rate,
		.working_set_pages = g->work.working_set_pages,
	};
	bool ok;
	int fd;

	fd = memfd_create("device-state", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	ok = write(fd, &head, sizeof(head)) == sizeof(head);
	for (uint32_t i = 0; i < g->o.n_vcpus && ok; i++)
		ok = write(fd, &g->vcpu[i].s, sizeof(g->vcpu[i].s)) == sizeof(g->vcpu[i].s);
	if (!ok) {
		close(fd);
		return -EIO;
	}
	*memfd = fd;
	*size = sizeof(head) + g->o.n_vcpus * sizeof(struct state_vcpu);
	return 0;
}

static bool
head_valid(const struct rl_synth_guest *g, const struct state_head *h)
{
	return h->magic == STATE_MAGIC && h->content < RL_SYNTH_N_CONTENTS &&
	       h->pattern < RL_SYNTH_N_PATTERNS && h->working_set_pages >= g->o.n_vcpus &&
	       h->working_set_pages <= g->data_pages &&
	       (h->rate <= RL_SYNTH_RATE_LIMIT || h->rate == RL_SYNTH_RATE_MAX);
}

int
rl_synth_load(struct rl_synth_guest *g, int memfd, uint64_t size, char *text)
{
	struct state_head head;
	struct state_vcpu *s;
	size_t bytes = g->o.n_vcpus * sizeof(*s);

	if (size < sizeof(head) || pread(memfd, &head, sizeof(head), 0) != sizeof(head) ||
	    head.magic != STATE_MAGIC) {
		snprintf(text, RL_VMM_TEXT_BYTES, "this is not the device state of a synthvm");
		return -EINVAL;
	}
	if (head.n_pages != g->o.n_pages || head.n_vcpus != g->o.n_vcpus) {
		snprintf(text, RL_VMM_TEXT_BYTES,
			 "the guest has %lu pages and %lu vCPUs, this synthvm %lu and %u: start it "
			 "with the "
			 "source's --memory and --vcpus",
			 head.n_pages, head.n_vcpus, g->o.n_pages, g->o.n_vcpus);
		return -EINVAL;
	}
	s = malloc(bytes);
	if (s == NULL)
		return -ENOMEM;
	if (!head_valid(g, &head) || size != sizeof(head) + bytes ||
	    pread(memfd, s, bytes, sizeof(head)) != (ssize_t)bytes) {
		snprintf(text, RL_VMM_TEXT_BYTES, "the device state is damaged");
		free(s);
		return -EINVAL;
	}
	g->work = (struct rl_synth_work){
		.content = (enum rl_synth_content)head.content,
		.pattern = (enum rl_synth_pattern)head.pattern,
		.seed = head.seed,
		.rate = head.rate,
		.working_set_pages = head.working_set_pages,
	};
	for (uint32_t i = 0; i < g->o.n_vcpus; i++) {
		g->vcpu[i].s = s[i];
		g->vcpu[i].writes = s[i].writes;
	}
	free(s);
	return 0;
}

void
rl_synth_reset(struct rl_synth_guest *g)
{
	init_state(g);
}
