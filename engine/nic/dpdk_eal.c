/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * DPDK itself: its environment, started once per process by the first dpdk: port; the identity of our threads;
 * the packet pools. Virtual devices need neither hugepages nor PCI, so they are started without.
 */
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mbuf_pool_ops.h>

#include "base/bytes.h"
#include "base/log.h"
#include "nic/nic_dpdk.h"

#define EAL_MAX_ARGS 48
#define POOL_CACHE   256
#define PAGE_BYTES   4096u

static enum { EAL_NONE, EAL_VDEV, EAL_PCI, EAL_FAILED } eal_state;

struct args {
	char *v[EAL_MAX_ARGS]; /* kept for ever: DPDK keeps pointers */
	int n;
};

static int
args_add(struct args *args, const char *arg)
{
	if (args->n == EAL_MAX_ARGS - 1)
		return -E2BIG;
	args->v[args->n] = strdup(arg);
	return args->v[args->n] != NULL ? (args->n++, 0) : -ENOMEM;
}

static int
args_add_words(struct args *args, const char *words)
{
	char *copy = strdup(words), *save = NULL;
	int ret = copy != NULL ? 0 : -ENOMEM;

	for (char *w = copy != NULL ? strtok_r(copy, " ", &save) : NULL; w != NULL && ret == 0;
	     w = strtok_r(NULL, " ", &save))
		ret = args_add(args, w);
	free(copy);
	return ret;
}

/* DPDK's log goes into ours: its errors come with an error of our own, so they are details. */
static ssize_t
log_write(void *cookie, const char *text, size_t bytes)
{
	int len = (int)bytes;

	(void)cookie;
	while (len > 0 && text[len - 1] == '\n')
		len--;
	if (rte_log_cur_msg_loglevel() <= (int)RTE_LOG_CRIT)
		rl_warn("dpdk: %.*s", len, text);
	else
		rl_debug("dpdk: %.*s", len, text);
	return (ssize_t)bytes;
}

static void
log_open(void)
{
	FILE *stream = fopencookie(NULL, "w", (cookie_io_functions_t){.write = log_write});

	if (stream == NULL)
		return;
	setvbuf(stream, NULL, _IOLBF, BUFSIZ);
	rte_openlog_stream(stream);
}

static int
eal_args(struct args *args, const struct rl_dpdk_spec *spec, const cpu_set_t *cpus,
	 const char *extra)
{
	char lcores[32], devargs[224];
	uint32_t cpu = 0;
	int ret;

	while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, cpus))
		cpu++;
	/* One lcore, the caller's: workers are our threads, so DPDK makes none of its own. */
	snprintf(lcores, sizeof(lcores), "--lcores=0@%u", cpu);
	/* No file is shared, so one prefix does for every process. */
	ret = args_add_words(args, "ramlift --no-telemetry --file-prefix=ramlift");
	ret = ret == 0 ? args_add(args, lcores) : ret;
	if (spec->kind == RL_DPDK_PCI) {
		snprintf(devargs, sizeof(devargs), "%s%s%s", spec->name,
			 spec->args[0] != '\0' ? "," : "", spec->args);
		ret = ret == 0 ? args_add_words(args, "--in-memory -a") : ret;
		ret = ret == 0 ? args_add(args, devargs) : ret;
	} else if (ret == 0) {
		ret = args_add_words(args, "--no-pci --no-huge --no-shconf --iova-mode=va -m 64");
	}
	return ret == 0 && extra != NULL ? args_add_words(args, extra) : ret;
}

int
rl_dpdk_eal_init(const struct rl_dpdk_spec *spec, const char *extra, struct rl_err *err)
{
	static struct args args;
	cpu_set_t cpus;
	int ret;

	if (eal_state == EAL_FAILED)
		return rl_err_set(err, -EINVAL,
				  "DPDK failed to start earlier and starts once per process; "
				  "restart this one");
	if (eal_state == EAL_VDEV && spec->kind == RL_DPDK_PCI)
		return rl_err_set(
			err, -EINVAL,
			"DPDK runs without PCI and hugepages since a port on a virtual device was "
			"opened first; open %s first, or in another process",
			spec->name);
	if (eal_state != EAL_NONE)
		return 0;

	log_open();
	sched_getaffinity(0, sizeof(cpus), &cpus);
	ret = eal_args(&args, spec, &cpus, extra);
	if (ret != 0)
		return rl_err_set(err, ret, "DPDK arguments: %s; give fewer in eal",
				  strerror(-ret));
	ret = rte_eal_init(args.n, args.v);
	/* rte_eal_init() pins its caller, who did not ask for that. */
	sched_setaffinity(0, sizeof(cpus), &cpus);
	if (ret < 0) {
		eal_state = EAL_FAILED;
		return rl_err_set(
			err, -rte_errno,
			"DPDK does not start for %s: %s; %s (its log is at debug level)",
			spec->name, rte_strerror(rte_errno),
			spec->kind == RL_DPDK_PCI
				? "reserve hugepages (`dpdk-hugepages.py --setup 1G`), check eal"
				: "check the arguments in eal");
	}
	eal_state = spec->kind == RL_DPDK_PCI ? EAL_PCI : EAL_VDEV;
	return 0;
}

static _Thread_local uint32_t thread_uses;

int
rl_dpdk_thread_register(void)
{
	/* The thread that started DPDK is known already and stays so. */
	if (thread_uses == 0 && rte_lcore_id() != LCORE_ID_ANY)
		return 0;
	if (thread_uses == 0 && rte_thread_register() != 0)
		return -rte_errno;
	thread_uses++;
	return 0;
}

void
rl_dpdk_thread_unregister(void)
{
	if (thread_uses > 0 && --thread_uses == 0)
		rte_thread_unregister();
}

static void
pool_unmap(struct rte_mempool_memhdr *mem, void *opaque)
{
	(void)opaque;
	munmap(mem->addr, mem->len);
}

/*
 * Objects that lie back to back in one mapping of plain memory. net_af_xdp registers [first object, n * object
 * size) with the kernel, so a pool with gaps loses its last objects; and an object of more than a page fails.
 */
static int
pool_populate(struct rte_mempool *pool, uint32_t n)
{
	size_t bytes = (size_t)n * (pool->header_size + pool->elt_size + pool->trailer_size);
	void *mem;
	int ret;

	bytes = RL_DIV_ROUND_UP(bytes, PAGE_BYTES) * PAGE_BYTES;
	mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
		   -1, 0);
	if (mem == MAP_FAILED)
		return -errno;
	ret = rte_mempool_populate_iova(pool, mem, RTE_BAD_IOVA, bytes, pool_unmap, NULL);
	if (ret < 0)
		munmap(mem, bytes);
	return ret < 0 ? ret : 0;
}

static struct rte_mempool *
pool_create_plain(const char *name, uint32_t room_bytes, uint32_t n)
{
	struct rte_pktmbuf_pool_private priv = {.mbuf_data_room_size = (uint16_t)room_bytes};
	struct rte_mempool *pool;
	int ret;

	pool = rte_mempool_create_empty(name, n, sizeof(struct rte_mbuf) + room_bytes, POOL_CACHE,
					sizeof(priv), SOCKET_ID_ANY,
					RTE_MEMPOOL_F_NO_SPREAD | RTE_MEMPOOL_F_NO_IOVA_CONTIG);
	if (pool == NULL)
		return NULL;
	ret = rte_mempool_set_ops_byname(pool, rte_mbuf_best_mempool_ops(), NULL);
	if (ret == 0) {
		rte_pktmbuf_pool_init(pool, &priv);
		ret = pool_populate(pool, n);
	}
	if (ret != 0) {
		rte_mempool_free(pool);
		rte_errno = -ret;
		return NULL;
	}
	rte_mempool_obj_iter(pool, rte_pktmbuf_init, NULL);
	return pool;
}

int
rl_dpdk_pool_create(const struct rl_dpdk_spec *spec, uint32_t room_bytes, uint32_t n,
		    struct rte_mempool **pool, struct rl_err *err)
{
	bool pci = spec->kind == RL_DPDK_PCI; /* its DMA needs pinned memory with known addresses */
	static uint32_t seq;
	char name[RTE_MEMPOOL_NAMESIZE];

	snprintf(name, sizeof(name), "rl_pool%u", seq++);
	*pool = pci ? rte_pktmbuf_pool_create(name, n, POOL_CACHE, 0, (uint16_t)room_bytes,
					      SOCKET_ID_ANY)
		    : pool_create_plain(name, room_bytes, n);
	if (*pool == NULL)
		return rl_err_set(err, -ENOMEM,
				  "no memory for %u packet buffers of %u bytes: %s; %s", n,
				  room_bytes, rte_strerror(rte_errno),
				  pci ? "reserve more hugepages, or use fewer queues"
				      : "free memory, or use fewer queues");
	return 0;
}
