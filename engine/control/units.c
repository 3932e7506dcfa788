/* SPDX-License-Identifier: BSD-3-Clause */
/* Numbers and addresses as people write them. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "control/units.h"

int
rl_parse_size(const char *text, uint64_t *value)
{
	static const char suffixes[] = "KMGT";
	const char *s;
	double v;
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	v = strtod(text, &end);
	if (end == text || v < 0)
		return -EINVAL;
	if (*end != '\0' && (s = strchr(suffixes, *end)) != NULL) {
		for (long i = s - suffixes; i >= 0; i--)
			v *= 1024;
		end++;
	}
	if (*end != '\0' || v > 9e18)
		return -EINVAL;
	*value = (uint64_t)v;
	return 0;
}

int
rl_parse_ip(const char *text, struct rl_ip *ip)
{
	memset(ip, 0, sizeof(*ip));
	if (text[0] == '\0')
		return 0;
	if (inet_pton(AF_INET, text, ip->addr) == 1)
		ip->family = AF_INET;
	else if (inet_pton(AF_INET6, text, ip->addr) == 1)
		ip->family = AF_INET6;
	else
		return -EINVAL;
	return 0;
}

static int
parse_port(const char *text, uint16_t *port)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end != '\0' || v == 0 || v > 65535)
		return -EINVAL;
	*port = (uint16_t)v;
	return 0;
}

int
rl_parse_endpoint(const char *text, uint16_t port, struct sockaddr_storage *ss, socklen_t *len,
		  struct rl_err *err)
{
	char host[INET6_ADDRSTRLEN + 2];
	const char *end, *colon;
	struct rl_ip ip;
	size_t n;

	if (text[0] == '[') {
		end = strchr(text, ']');
		if (end == NULL)
			goto bad;
		text++;
		colon = end[1] == ':' ? end + 1 : NULL;
		if (colon == NULL && end[1] != '\0')
			goto bad;
	} else {
		colon = strchr(text, ':');
		if (colon != NULL && strchr(colon + 1, ':') != NULL)
			colon = NULL; /* a bare IPv6 address */
		end = colon != NULL ? colon : text + strlen(text);
	}
	n = (size_t)(end - text);
	if (n == 0 || n >= sizeof(host) || (colon != NULL && parse_port(colon + 1, &port) != 0))
		goto bad;
	memcpy(host, text, n);
	host[n] = '\0';
	if (rl_parse_ip(host, &ip) != 0)
		goto bad;
	memset(ss, 0, sizeof(*ss));
	if (ip.family == AF_INET) {
		struct sockaddr_in *in = (struct sockaddr_in *)ss;

		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		memcpy(&in->sin_addr, ip.addr, 4);
		*len = sizeof(*in);
	} else {
		struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ss;

		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(port);
		memcpy(&in6->sin6_addr, ip.addr, 16);
		*len = sizeof(*in6);
	}
	return 0;
bad:
	return rl_err_set(err, -EINVAL,
			  "'%s' is not ADDRESS[:PORT]; write 198.18.0.2:7410 or "
			  "[fd00::2]:7410",
			  text);
}

void
rl_sockaddr_ip(const struct sockaddr_storage *ss, struct rl_ip *ip)
{
	memset(ip, 0, sizeof(*ip));
	if (ss->ss_family == AF_INET) {
		ip->family = AF_INET;
		memcpy(ip->addr, &((const struct sockaddr_in *)ss)->sin_addr, 4);
	} else if (ss->ss_family == AF_INET6) {
		const struct in6_addr *a = &((const struct sockaddr_in6 *)ss)->sin6_addr;

		if (IN6_IS_ADDR_V4MAPPED(a)) {
			ip->family = AF_INET;
			memcpy(ip->addr, &a->s6_addr[12], 4);
		} else {
			ip->family = AF_INET6;
			memcpy(ip->addr, a, 16);
		}
	}
}

void
rl_format_ip(const struct rl_ip *ip, char *text)
{
	if (ip->family == 0 || inet_ntop(ip->family, ip->addr, text, RL_ENDPOINT_TEXT) == NULL)
		text[0] = '\0';
}

void
rl_format_endpoint(const struct sockaddr_storage *ss, char *text)
{
	char host[RL_ENDPOINT_TEXT];
	struct rl_ip ip;
	uint16_t port =
		ntohs(ss->ss_family == AF_INET6 ? ((const struct sockaddr_in6 *)ss)->sin6_port
						: ((const struct sockaddr_in *)ss)->sin_port);

	rl_sockaddr_ip(ss, &ip);
	rl_format_ip(&ip, host);
	snprintf(text, RL_ENDPOINT_TEXT, ip.family == AF_INET6 ? "[%s]:%u" : "%s:%u", host, port);
}
