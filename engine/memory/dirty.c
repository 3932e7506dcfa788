/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Collections of dirty pages: harvest, doorbell, publish, a bounded piece per turn.
 *
 *	IDLE --> HARVEST --> WAIT --> PUBLISH --> IDLE
 *	         entries     KVM      pages become
 *	         taken       resets   pending
 *
 * A drain is answered by a collection of its own: all entries in the rings when it was asked for are in the
 * batch, translated by the old table, once its harvest is complete.
 */
#include "dirty_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"

#define TURN_ENTRIES 4096u /* harvested or published in one turn */
#define MAX_FUTILE   32u   /* doorbells in a row without progress */
#define QUIET_NS     (4 * RL_NS_PER_MS)
#define LOOK_NS      (500 * RL_NS_PER_US)
#define MIN_ENTRIES  2048u
#define MAX_ENTRIES  65536u

/* ---- open and close ---- */

/* A file that the VMM could shorten would kill us with SIGBUS. */
static int
check_sealed(int fd, uint64_t bytes, const char *what, struct rl_err *err)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return rl_err_set(
			err, -EPROTO,
			"%s is not sealed against shrinking; the VMM must make it a memfd with "
			"F_SEAL_SHRINK",
			what);
	if (fstat(fd, &st) != 0 || (uint64_t)st.st_size < bytes)
		return rl_err_set(err, -EPROTO,
				  "%s is shorter than the %llu bytes announced; correct the VMM",
				  what, (unsigned long long)bytes);
	return 0;
}

static bool
fd_is(int fd, const char *kind)
{
	char path[32], target[32];
	size_t len = strlen(kind);
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, target, sizeof(target));
	return n >= (ssize_t)len && memcmp(target, kind, len) == 0;
}

static int
open_ring(struct rl_dirty *d, const struct rl_dirty_ring_opts *o, uint32_t i, struct rl_err *err)
{
	struct dirty_ring *r = &d->ring[i];
	size_t bytes = (size_t)o->entries * sizeof(struct rl_vmm_dirty_gfn);
	char what[48];
	void *p;
	int rc;

	snprintf(what, sizeof(what), "the dirty ring of vCPU %u", i);
	if (!rl_is_pow2(o->entries) || o->entries < MIN_ENTRIES || o->entries > MAX_ENTRIES)
		return rl_err_set(err, -EINVAL,
				  "%s has %u entries; a power of two from %u to %u is "
				  "needed, best the largest",
				  what, o->entries, MIN_ENTRIES, MAX_ENTRIES);
	if (!fd_is(o->fd, "anon_inode:kvm-vcpu")) {
		rc = check_sealed(o->fd, o->offset + bytes, what, err);
		if (rc != 0)
			return rc;
	}
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, o->fd, (off_t)o->offset);
	if (p == MAP_FAILED)
		return rl_err_set(err, -EPROTO, "cannot map %s: %s; correct its offset in the VMM",
				  what, strerror(errno));
	r->gfn = p;
	r->entries = o->entries;
	/* KVM maps anything and raises SIGBUS at the first touch; this says so without one. */
	if (madvise(p, bytes, MADV_POPULATE_WRITE) != 0)
		return rl_err_set(err, -EPROTO,
				  "%s has fewer than %u entries in KVM (%s); the VMM must enable "
				  "KVM_CAP_DIRTY_LOG_RING_ACQ_REL with the size it announces",
				  what, o->entries, strerror(errno));
	dirty_ring_attach(r);
	d->st.overflows += r->broken;
	d->max_batch += o->entries;
	return 0;
}

static int
open_shared(struct rl_dirty *d, const struct rl_dirty_opts *o, struct rl_err *err)
{
	void *p;
	int rc;

	if (o->shared_size < sizeof(struct rl_vmm_shared))
		return rl_err_set(
			err, -EPROTO,
			"the shared page has %llu bytes, it needs at least %zu; correct the VMM",
			(unsigned long long)o->shared_size, sizeof(struct rl_vmm_shared));
	rc = check_sealed(o->shared_fd, o->shared_size, "the shared page", err);
	if (rc != 0)
		return rc;
	p = mmap(NULL, o->shared_size, PROT_READ | PROT_WRITE, MAP_SHARED, o->shared_fd, 0);
	if (p == MAP_FAILED)
		return rl_err_set(err, -errno,
				  "cannot map the shared page: %s; pass it open for writing",
				  strerror(errno));
	d->shared = p;
	d->shared_size = o->shared_size;
	d->n_slots = __atomic_load_n(&d->shared->n_slots, __ATOMIC_RELAXED);
	if (d->shared->magic != RL_VMM_SHARED_MAGIC || d->n_slots > RL_VMM_MAX_SLOTS)
		return rl_err_set(
			err, -EPROTO,
			"the shared page has magic %#x and %u slots; the VMM must use the "
			"layout of ramlift/vmm.h",
			d->shared->magic, d->n_slots);
	/* Go on counting where the engine before us stopped. */
	d->door_req = __atomic_load_n(&d->shared->door_req, __ATOMIC_RELAXED);
	d->drained = __atomic_load_n(&d->shared->drain_ack, __ATOMIC_RELAXED);
	return 0;
}

static int
open_rings(struct rl_dirty *d, const struct rl_dirty_opts *o, struct rl_err *err)
{
	int rc;

	if (o->n_rings == 0 || o->n_rings > RL_VMM_MAX_VCPUS)
		return rl_err_set(err, -EINVAL, "%u dirty rings; 1 to %u are possible", o->n_rings,
				  RL_VMM_MAX_VCPUS);
	d->ring = calloc(o->n_rings, sizeof(*d->ring));
	if (!d->ring)
		return rl_err_set(err, -ENOMEM, "no memory for %u dirty rings", o->n_rings);
	d->n_rings = o->n_rings;
	for (uint32_t i = 0; i < o->n_rings; i++) {
		rc = open_ring(d, &o->ring[i], i, err);
		if (rc != 0)
			return rc;
	}
	d->batch = malloc(d->max_batch * sizeof(*d->batch));
	if (!d->batch)
		return rl_err_set(err, -ENOMEM, "no memory for %llu dirty pages",
				  (unsigned long long)d->max_batch);
	return 0;
}

int
rl_dirty_open(const struct rl_dirty_opts *opts, struct rl_dirty **out, struct rl_err *err)
{
	struct rl_dirty *d;
	int rc;

	if (opts->pending->n_pages != opts->ram->n_pages)
		return rl_err_set(err, -EINVAL, "pending set of %llu pages for guest RAM of %llu",
				  (unsigned long long)opts->pending->n_pages,
				  (unsigned long long)opts->ram->n_pages);
	if (!fd_is(opts->doorbell_fd, "anon_inode:[eventfd]"))
		return rl_err_set(err, -EPROTO, "the doorbell is not an eventfd; correct the VMM");
	d = calloc(1, sizeof(*d));
	if (!d)
		return rl_err_set(err, -ENOMEM, "no memory for the dirty source");
	d->ram = opts->ram;
	d->pending = opts->pending;
	d->doorbell_fd = opts->doorbell_fd;
	rc = open_shared(d, opts, err);
	if (rc == 0 && !opts->bitmap)
		rc = open_rings(d, opts, err);
	if (rc != 0) {
		rl_dirty_close(d);
		return rc;
	}
	*out = d;
	return 0;
}

void
rl_dirty_close(struct rl_dirty *d)
{
	if (!d)
		return;
	for (uint32_t i = 0; i < d->n_rings; i++)
		if (d->ring[i].gfn)
			munmap(d->ring[i].gfn,
			       (size_t)d->ring[i].entries * sizeof(*d->ring[i].gfn));
	if (d->shared)
		munmap(d->shared, d->shared_size);
	free(d->batch);
	free(d->ring);
	free(d);
}

/* ---- a collection ---- */

static bool
fail(struct rl_dirty *d, int error)
{
	d->error = error;
	d->state = DIRTY_IDLE;
	d->wanted = false;
	return false;
}

/*
 * vCPUs leave the guest for their full rings, and more often than one each may still be on its way out. If no
 * ring looks full, it must be one with a gap; if there is but one such, we know which.
 */
static bool
find_stuck(struct rl_dirty *d)
{
	struct dirty_ring *gapped = NULL;

	if (rl_likely(__atomic_load_n(&d->shared->ring_full_exits, __ATOMIC_RELAXED) -
			      d->full_exits <=
		      d->n_rings))
		return false;
	for (uint32_t i = 0; i < d->n_rings; i++) {
		if (!d->ring[i].gapped)
			continue;
		if (gapped)
			return false;
		gapped = &d->ring[i];
	}
	if (!gapped)
		return false;
	gapped->stuck = true;
	gapped->broken = true;
	rl_count(&d->st.overflows, 1);
	return true;
}

static bool
begin(struct rl_dirty *d)
{
	uint64_t drain = __atomic_load_n(&d->shared->drain_req, __ATOMIC_ACQUIRE);
	bool urged = false;

	for (uint32_t i = 0; i < d->n_rings; i++)
		urged |= dirty_ring_urges(&d->ring[i]);
	urged = urged || find_stuck(d);
	if (!d->wanted && !urged && drain == d->drained)
		return false;
	if (urged && !d->wanted)
		rl_count(&d->st.pressure, 1);
	d->wanted = false;
	d->drain_target = drain;
	d->relog_target = __atomic_load_n(&d->relogged, __ATOMIC_ACQUIRE);
	d->slot.valid = 0;
	d->n_batch = 0;
	d->at = 0;
	d->at_run = 0;
	d->unreset = 0;
	d->futile = 0;
	d->mending = NULL;
	d->state = DIRTY_HARVEST;
	return true;
}

static void
answer_drain(struct rl_dirty *d)
{
	if (d->drain_target == d->drained)
		return;
	d->drained = d->drain_target;
	__atomic_store_n(&d->shared->drain_ack, d->drained, __ATOMIC_RELEASE);
	rl_count(&d->st.drains, 1);
}

static void
ring_doorbell(struct rl_dirty *d, uint64_t now_ns)
{
	const uint64_t one = 1;

	__atomic_store_n(&d->shared->door_cmd,
			 d->n_rings > 0 ? RL_VMM_DOOR_RESET_RINGS : RL_VMM_DOOR_SYNC_BITMAP,
			 __ATOMIC_RELAXED);
	__atomic_store_n(&d->shared->door_req, ++d->door_req, __ATOMIC_RELEASE);
	d->door_ns = now_ns;
	d->state = DIRTY_WAIT;
	if (write(d->doorbell_fd, &one, sizeof(one)) != sizeof(one))
		fail(d, -errno);
}

/*
 * All that was marked is reset. True: the pages are write-protected again and may be published. Otherwise a
 * ring is broken: such are mended one by one, so that the doorbell's result tells where KVM's reset stands.
 */
static bool
finish_reset(struct rl_dirty *d, uint64_t now_ns)
{
	if (d->mending) {
		d->mending->broken = false;
		d->mending->stuck = false;
		d->mending = NULL;
		rl_count(&d->st.overflows, 1); /* a log started again before this was too early */
	}
	for (uint32_t i = 0; i < d->n_rings; i++)
		dirty_ring_settle(&d->ring[i]);
	while (d->at < d->n_rings) {
		struct dirty_ring *r = &d->ring[d->at++];

		if (rl_likely(!r->broken))
			continue;
		d->mending = r;
		d->quiet_ns = now_ns;
		d->state = DIRTY_QUIET;
		return false;
	}
	d->at = 0;
	d->state = DIRTY_PUBLISH;
	return true;
}

/*
 * A vCPU that has filled its ring does not stop at once, and what it pushes over entries that are being reset
 * makes gaps. Mark all, see that nothing more comes, and only then ring the doorbell.
 */
static void
quieten(struct rl_dirty *d, uint64_t now_ns)
{
	if (now_ns - d->looked_ns < LOOK_NS)
		return;
	d->looked_ns = now_ns;
	if (dirty_ring_mend(d->mending)) {
		d->quiet_ns = now_ns;
	} else if (now_ns - d->quiet_ns >= QUIET_NS) {
		d->unreset = d->mending->marked;
		ring_doorbell(d, now_ns);
	}
}

/* One piece of the harvest, then KVM is asked to reset. */
static void
harvest(struct rl_dirty *d, uint64_t now_ns)
{
	uint32_t left = TURN_ENTRIES;

	while (d->at < d->n_rings) {
		int n = dirty_ring_harvest(d, &d->ring[d->at], left);

		if (n < 0) {
			fail(d, n);
			return;
		}
		left -= (uint32_t)n;
		if (left == 0)
			return;
		d->unreset += d->ring[d->at++].marked;
	}
	d->at = 0;
	if (d->n_rings > 0)
		answer_drain(d);
	if (d->n_rings > 0 && d->unreset == 0)
		finish_reset(d, now_ns);
	else
		ring_doorbell(d, now_ns);
}

/* KVM has reset @n entries, fewer than were marked. In which rings? Where they are free; the rest where KVM has
 * already pushed new ones (unsure only if two rings went round since the doorbell). */
static void
credit(struct rl_dirty *d, uint64_t n)
{
	for (uint32_t i = 0; i < d->n_rings && !d->mending; i++)
		n -= rl_min64(dirty_ring_advance(&d->ring[i]), n);
	for (uint32_t i = 0; i < d->n_rings && n > 0; i++) {
		struct dirty_ring *r = &d->ring[i];
		uint32_t k = (uint32_t)rl_min64(n, r->marked);

		dirty_ring_credit(r, k);
		n -= k;
	}
}

/* True: KVM was asked again for the rest. */
static bool
ask_again(struct rl_dirty *d, int64_t result, uint64_t now_ns)
{
	if (result > 0) {
		d->futile = 0;
		credit(d, (uint64_t)result);
	} else if (++d->futile > MAX_FUTILE) {
		fail(d, result < 0 ? (int)result : -EPROTO);
		return true;
	}
	if (d->mending) {
		d->quiet_ns = now_ns;
		d->state = DIRTY_QUIET;
		return true;
	}
	if (result == 0) {
		d->unreset = 0;
		for (uint32_t i = 0; i < d->n_rings; i++)
			d->unreset += dirty_ring_unstick(d, &d->ring[i]);
	}
	if (d->unreset == 0 && d->n_rings > 0)
		return false;
	ring_doorbell(d, now_ns);
	return true;
}

/* True: the pages may be published. */
static bool
await(struct rl_dirty *d, uint64_t now_ns)
{
	int64_t result;

	if (__atomic_load_n(&d->shared->door_ack, __ATOMIC_ACQUIRE) != d->door_req)
		return false;
	result = __atomic_load_n(&d->shared->door_result, __ATOMIC_RELAXED);
	rl_count(&d->st.reset_ns, now_ns - d->door_ns);
	if (result < 0 && result != -EINTR && result != -EAGAIN)
		return fail(d, result < -4095 ? -EPROTO : (int)result);
	if (result > 0)
		d->unreset -= rl_min64((uint64_t)result, d->unreset);
	if ((d->unreset > 0 || result < 0) && ask_again(d, result, now_ns))
		return false;
	return finish_reset(d, now_ns);
}

static void
publish_extent(void *ctx, uint64_t page, uint64_t n)
{
	struct rl_dirty *d = ctx;

	rl_count(&d->st.pages, rl_bitmap_set_range(d->pending, page, n));
}

/* There was an overflow. It asks the file system which pages hold data; rare. */
static void
publish_all(struct rl_dirty *d)
{
	rl_ram_extents(d->ram, publish_extent, d);
	d->mended = d->relog_target;
}

/* One piece of the publishing. True: that was the last. */
static bool
publish(struct rl_dirty *d)
{
	uint64_t end, fresh = 0;

	if (d->n_rings == 0) {
		int rc = dirty_bitmap_merge(d);

		if (rc <= 0)
			return rc < 0 ? fail(d, rc) : false;
		answer_drain(d); /* a deleted slot's bitmap was there until now */
		return true;
	}
	end = rl_min64(d->n_batch, d->at_run + TURN_ENTRIES);
	for (; d->at_run < end; d->at_run++) {
		const struct rl_run *run = &d->batch[d->at_run];

		fresh += run->n == 1 ? rl_bitmap_set(d->pending, run->first)
				     : rl_bitmap_set_range(d->pending, run->first, run->n);
	}
	rl_count(&d->st.pages, fresh);
	if (d->at_run < d->n_batch)
		return false;
	if (rl_unlikely(d->mended != d->st.overflows))
		publish_all(d);
	return true;
}

bool
rl_dirty_turn(struct rl_dirty *d, uint64_t now_ns)
{
	uint64_t from_ns;
	bool done = false;

	if (rl_unlikely(d->error != 0) || (d->state == DIRTY_IDLE && !begin(d)))
		return false;
	if (d->state == DIRTY_WAIT && !await(d, now_ns))
		return false;
	from_ns = rl_now_ns();
	if (d->state == DIRTY_HARVEST)
		harvest(d, now_ns);
	if (d->state == DIRTY_QUIET)
		quieten(d, now_ns);
	if (d->state == DIRTY_PUBLISH)
		done = publish(d);
	rl_count(&d->st.harvest_ns, rl_now_ns() - from_ns);
	if (done) {
		rl_count(&d->st.collections, 1);
		d->full_exits = __atomic_load_n(&d->shared->ring_full_exits, __ATOMIC_RELAXED);
		d->state = DIRTY_IDLE;
	}
	return done;
}

void
rl_dirty_collect(struct rl_dirty *d, uint64_t now_ns)
{
	(void)now_ns;
	d->wanted = d->state == DIRTY_IDLE && d->error == 0;
}

bool
rl_dirty_busy(const struct rl_dirty *d)
{
	return d->wanted || d->state != DIRTY_IDLE;
}

void
rl_dirty_relogged(struct rl_dirty *d, uint64_t overflows)
{
	__atomic_store_n(&d->relogged, overflows, __ATOMIC_RELEASE);
}

uint64_t
rl_dirty_fill(const struct rl_dirty *d)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < d->n_rings; i++)
		n += dirty_ring_fill(&d->ring[i]);
	return n;
}

bool
rl_dirty_can_fill(const struct rl_dirty *d)
{
	return d->n_rings > 0;
}

int
rl_dirty_error(const struct rl_dirty *d)
{
	return d->error;
}

const struct rl_dirty_stats *
rl_dirty_stats(const struct rl_dirty *d)
{
	return &d->st;
}
