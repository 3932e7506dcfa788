/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON-RPC calls to ramliftd: one line out, one line back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "app/rpc_client.h"

int
rl_rpc_connect(struct rl_rpc_client *c, const char *path, struct rl_err *err)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	const struct timeval timeout = {.tv_sec = 10};
	int rc;

	if (strlen(path) >= sizeof(sun.sun_path))
		return rl_err_set(err, -ENAMETOOLONG, "%s: too long for a unix socket", path);
	memcpy(sun.sun_path, path, strlen(path));
	c->next_id = 1;
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return rl_err_set(err, -errno, "socket: %s", strerror(errno));
	setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	if (connect(c->fd, (struct sockaddr *)&sun, sizeof(sun)) == 0)
		return 0;
	rc = rl_err_set(
		err, -errno,
		"no ramliftd answers on %s (%s); start ramliftd, or name its socket with --rpc",
		path, strerror(errno));
	rl_rpc_disconnect(c);
	return rc;
}

void
rl_rpc_disconnect(struct rl_rpc_client *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

static int
read_line(int fd, char **line, struct rl_err *err)
{
	size_t n = 0, cap = 65536;
	char *buf = malloc(cap);

	while (buf != NULL) {
		ssize_t k = recv(fd, buf + n, cap - n, 0);

		if (k <= 0) {
			free(buf);
			return rl_err_set(err, k < 0 ? -errno : -ECONNRESET,
					  "ramliftd closed the connection; see its log");
		}
		n += (size_t)k;
		if (buf[n - 1] == '\n') {
			buf[n - 1] = '\0';
			*line = buf;
			return 0;
		}
		if (n == cap) {
			char *more = realloc(buf, cap *= 2);

			if (more == NULL)
				free(buf);
			buf = more;
		}
	}
	return rl_err_set(err, -ENOMEM, "no memory for the reply");
}

static int
parse_reply(const char *line, json_t **result, struct rl_err *err)
{
	json_t *reply = json_loads(line, 0, NULL);
	json_t *error = json_object_get(reply, "error"), *ok = json_object_get(reply, "result");
	const char *text = json_string_value(json_object_get(error, "message"));
	int rc = 0;

	if (error != NULL)
		rc = rl_err_set(err, -EREMOTEIO, "%s", text != NULL ? text : "unknown error");
	else if (ok == NULL)
		rc = rl_err_set(err, -EPROTO, "ramliftd's reply is not JSON-RPC");
	else
		*result = json_incref(ok);
	json_decref(reply);
	return rc;
}

int
rl_rpc_call(struct rl_rpc_client *c, const char *method, json_t *params, json_t **result,
	    struct rl_err *err)
{
	json_t *req = json_pack("{ss si ss so*}", "jsonrpc", "2.0", "id", c->next_id++, "method",
				method, "params", params);
	char *text = json_dumps(req, JSON_COMPACT), *line = NULL;
	size_t n = text != NULL ? strlen(text) : 0;
	int rc = 0;

	json_decref(req);
	if (text == NULL)
		return rl_err_set(err, -ENOMEM, "no memory for the request");
	text[n] = '\n'; /* over the terminating 0: a line is what travels */
	for (size_t done = 0; done < n + 1 && rc == 0;) {
		ssize_t k = send(c->fd, text + done, n + 1 - done, MSG_NOSIGNAL);

		if (k < 0)
			rc = rl_err_set(err, -errno, "ramliftd closed the connection; see its log");
		else
			done += (size_t)k;
	}
	free(text);
	if (rc == 0)
		rc = read_line(c->fd, &line, err);
	if (rc == 0)
		rc = parse_reply(line, result, err);
	free(line);
	return rc;
}
