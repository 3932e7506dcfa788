/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON-RPC 2.0: one table of methods. */
#include <errno.h>
#include <string.h>

#include <ramlift/version.h>

#include "base/clock.h"
#include "control/daemon.h"
#include "control/peer.h"
#include "control/rpc.h"
#include "control/units.h"
#include "control/uuid.h"

#define RPC_PARSE     (-32700)
#define RPC_REQUEST   (-32600)
#define RPC_NO_METHOD (-32601)
#define RPC_PARAMS    (-32602)
#define RPC_ENGINE    (-32000)

/* A method returns its result, or NULL with @err set: -EINVAL for wrong parameters, else the engine's. */
struct method {
	const char *name;
	json_t *(*fn)(struct rl_daemon *d, json_t *params, struct rl_err *err);
};

static json_t *
do_version(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	(void)d;
	(void)params;
	(void)err;
	return json_pack("{ss si si}", "version", RAMLIFT_VERSION, "wire", RAMLIFT_WIRE_VERSION,
			 "vmm", RAMLIFT_VMM_VERSION);
}

static json_t *
vm_json(const struct rl_vm *vm)
{
	char uuid[37];

	rl_uuid_format(vm->hello.uuid, uuid);
	return json_pack(
		"{ss ss ss sI sI si ss si}", "name", vm->hello.name, "uuid", uuid, "phase",
		rl_vm_phase_name(rl_vm_phase(vm)), "memory-bytes",
		(json_int_t)(vm->ram.n_pages << 12), "page-size",
		(json_int_t)vm->ram.region[0].page_size, "vcpus", (int)vm->hello.n_vcpus, "backend",
		vm->hello.features & RL_VMM_FEAT_DIRTY_RING ? "dirty-ring" : "dirty-bitmap", "pid",
		(int)vm->pid);
}

static json_t *
do_list(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	json_t *vms = json_array(), *migrations = json_array();

	(void)params;
	(void)err;
	pthread_mutex_lock(&d->lock);
	for (struct rl_vm *vm = d->vms; vm != NULL; vm = vm->next)
		json_array_append_new(vms, vm_json(vm));
	for (struct rl_session *s = d->sessions; s != NULL; s = s->next)
		json_array_append_new(migrations, rl_session_json(s));
	pthread_mutex_unlock(&d->lock);
	return json_pack("{so so}", "vms", vms, "migrations", migrations);
}

static int
get_uint(json_t *params, const char *key, uint64_t max, uint64_t *value, struct rl_err *err)
{
	json_t *v = json_object_get(params, key);

	if (v == NULL)
		return 0;
	if (!json_is_integer(v) || json_integer_value(v) < 0 ||
	    (uint64_t)json_integer_value(v) > max)
		return rl_err_set(err, -EINVAL, "'%s' must be a number from 0 to %llu", key,
				  (unsigned long long)max);
	*value = (uint64_t)json_integer_value(v);
	return 0;
}

static int
get_parameters(json_t *params, struct rl_parameters *p, struct rl_err *err)
{
	json_t *how = json_object_get(params, "timeout-strategy");
	json_t *verify = json_object_get(params, "verify");
	const char *strategy = json_string_value(how);
	int rc = get_uint(params, "max-bandwidth", 1ull << 50, &p->max_bandwidth, err);

	if (rc == 0)
		rc = get_uint(params, "downtime-limit", 2000000, &p->downtime_limit_ms, err);
	if (rc == 0)
		rc = get_uint(params, "timeout", 1u << 30, &p->timeout_s, err);
	if (rc != 0)
		return rc;
	if (how != NULL && (strategy == NULL || (strcmp(strategy, "cancel") != 0 &&
						 strcmp(strategy, "switchover") != 0)))
		return rl_err_set(err, -EINVAL, "'timeout-strategy' must be cancel or switchover");
	if (verify != NULL && !json_is_boolean(verify))
		return rl_err_set(err, -EINVAL, "'verify' must be true or false");
	if (strategy != NULL)
		p->timeout_strategy =
			strcmp(strategy, "cancel") == 0 ? RL_TIMEOUT_CANCEL : RL_TIMEOUT_SWITCHOVER;
	if (verify != NULL)
		p->verify = json_is_true(verify);
	return 0;
}

static json_t *
do_migrate(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	const char *vm = json_string_value(json_object_get(params, "vm"));
	const char *to = json_string_value(json_object_get(params, "to"));
	struct sockaddr_storage ss;
	socklen_t len;
	uint8_t uuid[16];
	char peer[RL_ENDPOINT_TEXT], id[37];
	struct rl_session *s;

	if (vm == NULL || to == NULL) {
		rl_err_set(err, -EINVAL, "'vm' and 'to' are needed");
		return NULL;
	}
	if (strlen(vm) >= RL_VMM_NAME_BYTES ||
	    rl_parse_endpoint(to, RL_DEFAULT_PORT, &ss, &len, err) != 0) {
		if (err->code == 0)
			rl_err_set(err, -EINVAL, "'vm' is too long");
		return NULL;
	}
	rl_format_endpoint(&ss, peer);
	rl_uuid_make(uuid);
	rl_uuid_format(uuid, id);
	s = rl_session_create(d, false, uuid, vm, peer);
	if (s == NULL) {
		rl_err_set(err, -ENOMEM, "no memory for a migration");
		return NULL;
	}
	if (get_parameters(params, &s->param, err) != 0) {
		rl_session_destroy(s);
		return NULL;
	}
	rl_daemon_add_session(d, s);
	if (rl_session_start(s, rl_source_session_main, err) != 0) {
		rl_session_end(s, RL_STATUS_FAILED, err);
		return NULL;
	}
	return json_pack("{ss}", "id", id); /* by now it may have ended */
}

/* The session that 'id' or 'vm' names, or the newest. Call with the lock held. */
static struct rl_session *
find(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	json_t *by_id = json_object_get(params, "id"), *by_vm = json_object_get(params, "vm");
	const char *id = json_string_value(by_id), *vm = json_string_value(by_vm);
	size_t n = id != NULL ? strlen(id) : 0;

	if ((by_id != NULL && id == NULL) || (by_vm != NULL && vm == NULL)) {
		rl_err_set(err, -EINVAL, "'id' and 'vm' must be strings");
		return NULL;
	}
	/* A unique enough beginning of an id will do. */
	for (struct rl_session *s = d->sessions; s != NULL; s = s->next)
		if ((id == NULL || (n >= 4 && strncmp(s->id, id, n) == 0)) &&
		    (vm == NULL || strcmp(s->vm_name, vm) == 0))
			return s;
	if (id != NULL)
		rl_err_set(err, -ENOENT, "no migration '%s'; see ramlift list", id);
	else if (vm != NULL)
		rl_err_set(err, -ENOENT, "no migration of '%s'; see ramlift list", vm);
	else
		rl_err_set(err, -ENOENT, "no migration yet");
	return NULL;
}

static json_t *
do_query(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	struct rl_session *s;
	json_t *j = NULL;

	pthread_mutex_lock(&d->lock);
	s = find(d, params, err);
	if (s != NULL)
		j = rl_session_json(s);
	pthread_mutex_unlock(&d->lock);
	return j;
}

static json_t *
do_set_parameters(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	struct rl_parameters p;
	struct rl_session *s;
	json_t *j = NULL;

	pthread_mutex_lock(&d->lock);
	s = find(d, params, err);
	if (s != NULL) {
		pthread_mutex_lock(&s->lock);
		p = s->param;
		if (s->target || s->ended_ns != 0) {
			rl_err_set(err, -ESRCH, "migration %s %s", s->id,
				   s->target ? "has its limits at the source: set them there"
					     : "has ended");
		} else if (get_parameters(params, &p, err) == 0) {
			p.verify = s->param.verify; /* agreed with the peer in hello */
			s->param = p;
			s->param_changed = true;
			j = rl_parameters_json(&p);
		}
		pthread_mutex_unlock(&s->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return j;
}

static json_t *
do_cancel(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	struct rl_session *s;
	json_t *j = NULL;

	pthread_mutex_lock(&d->lock);
	s = find(d, params, err);
	if (s != NULL && rl_session_cancel(s, err) == 0)
		j = json_object();
	pthread_mutex_unlock(&d->lock);
	return j;
}

static json_t *
do_recover(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	const char *decide = json_string_value(json_object_get(params, "decide"));
	struct rl_session *s;
	json_t *j = NULL;

	if (decide != NULL && strcmp(decide, "resume") != 0 && strcmp(decide, "discard") != 0) {
		rl_err_set(err, -EINVAL, "'decide' must be resume or discard");
		return NULL;
	}

	pthread_mutex_lock(&d->lock);
	s = find(d, params, err);
	if (s != NULL) {
		if (decide != NULL &&
		    rl_session_decide(
			    s, strcmp(decide, "resume") == 0 ? RL_DECIDE_RESUME : RL_DECIDE_DISCARD,
			    err) != 0) {
			pthread_mutex_unlock(&d->lock);
			return NULL;
		}
		pthread_mutex_lock(&s->lock);
		if (s->recovering)
			j = json_pack("{sb so}", "recovering", 1, "error-desc",
				      rl_peer_text(s->error.text));
		else
			rl_err_set(err, -EALREADY,
				   "migration %s is %s: there is nothing to recover", s->id,
				   rl_status_name(s->status));
		pthread_mutex_unlock(&s->lock);
	}
	pthread_mutex_unlock(&d->lock);
	return j;
}

static json_t *
queue_json(const struct rl_daemon *d, uint32_t k)
{
	struct rl_worker_stats w;
	struct rl_nic_stats n;

	rl_workers_stats(d->workers, k, &w);
	rl_nic_stats(d->nic, k, &n);
	return json_pack(
		"{sI sI sI sI sI sI sI sI sI sI sI sI sI sI}", "turns", (json_int_t)w.turns,
		"busy-turns", (json_int_t)w.busy_turns, "sleeps", (json_int_t)w.sleeps,
		"rx-unknown", (json_int_t)w.rx_unknown, "handed-over", (json_int_t)w.handed_over,
		"cpu-ns", (json_int_t)w.cpu_ns, "rx-packets", (json_int_t)n.rx_packets, "rx-bytes",
		(json_int_t)n.rx_bytes, "tx-packets", (json_int_t)n.tx_packets, "tx-bytes",
		(json_int_t)n.tx_bytes, "tx-refused", (json_int_t)n.tx_refused, "rx-foreign",
		(json_int_t)n.rx_foreign, "rx-injected-drops", (json_int_t)n.rx_injected_drops,
		"alloc-failed", (json_int_t)n.alloc_failed);
}

static json_t *
do_stats(struct rl_daemon *d, json_t *params, struct rl_err *err)
{
	const struct rl_nic_info *info = rl_nic_info(d->nic);
	json_t *workers = json_array();
	char address[RL_ENDPOINT_TEXT];
	uint64_t vmm_refused, peer_refused;

	(void)params;
	(void)err;
	for (uint32_t k = 0; k < rl_workers_count(d->workers); k++)
		json_array_append_new(workers, queue_json(d, k));
	rl_format_ip(&info->address, address);
	pthread_mutex_lock(&d->lock);
	vmm_refused = d->vmm_refused;
	peer_refused = d->peer_refused;
	pthread_mutex_unlock(&d->lock);
	return json_pack("{sI so s{ss ss ss si si si} sI sI sI}", "uptime-ms",
			 (json_int_t)((rl_now_ns() - d->born_ns) / RL_NS_PER_MS), "workers",
			 workers, "port", "uri", info->uri, "interface", info->ifname, "address",
			 address, "udp-port", (int)info->udp_port, "max-payload",
			 (int)info->max_payload, "rx-ring", (int)info->rx_ring, "vmm-refused",
			 (json_int_t)vmm_refused, "peer-refused", (json_int_t)peer_refused,
			 "rpc-errors", (json_int_t)d->rpc_errors);
}

static const struct method methods[] = {
	{"version", do_version},
	{"list", do_list},
	{"migrate", do_migrate},
	{"query-migrate", do_query},
	{"migrate-set-parameters", do_set_parameters},
	{"migrate-cancel", do_cancel},
	{"migrate-recover", do_recover},
	{"stats", do_stats},
};

static json_t *
error_reply(struct rl_daemon *d, json_t *id, int code, const struct rl_err *err)
{
	const char *name = strerrorname_np(-err->code);

	d->rpc_errors++;
	return json_pack("{ss s{si so s{ss}} sO}", "jsonrpc", "2.0", "error", "code", code,
			 "message", rl_peer_text(err->text), "data", "errno",
			 name != NULL ? name : "EIO", "id", id != NULL ? id : json_null());
}

json_t *
rl_rpc_handle(struct rl_daemon *d, const char *line, size_t len)
{
	struct rl_err err = {.code = -EINVAL, .text = "not a JSON-RPC 2.0 request"};
	json_t *req = json_loadb(line, len, 0, NULL);
	json_t *id = json_object_get(req, "id"), *params = json_object_get(req, "params");
	const char *name = json_string_value(json_object_get(req, "method"));
	const char *version = json_string_value(json_object_get(req, "jsonrpc"));
	const struct method *m = NULL;
	json_t *reply, *result;

	if (req == NULL) {
		rl_err_set(&err, -EINVAL, "not JSON");
		return error_reply(d, NULL, RPC_PARSE, &err);
	}
	if (id != NULL && !json_is_string(id) && !json_is_number(id) && !json_is_null(id)) {
		rl_err_set(&err, -EINVAL, "'id' must be a string, a number or null");
		id = NULL;
		name = NULL;
	}
	if (name == NULL || version == NULL || strcmp(version, "2.0") != 0 ||
	    (params != NULL && !json_is_object(params))) {
		reply = error_reply(d, id, RPC_REQUEST, &err);
		json_decref(req);
		return reply;
	}
	for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++)
		if (strcmp(methods[i].name, name) == 0)
			m = &methods[i];
	err = (struct rl_err){0};
	result = m != NULL ? m->fn(d, params, &err) : NULL;
	if (result != NULL) {
		reply = json_pack("{ss so sO?}", "jsonrpc", "2.0", "result", result, "id", id);
	} else if (m == NULL) {
		rl_err_set(&err, -ENOSYS, "no method '%.64s'", name);
		reply = error_reply(d, id, RPC_NO_METHOD, &err);
	} else {
		reply = error_reply(d, id, err.code == -EINVAL ? RPC_PARAMS : RPC_ENGINE, &err);
	}
	if (id == NULL) { /* a notification */
		json_decref(reply);
		reply = NULL;
	}
	json_decref(req);
	return reply;
}
