/* SPDX-License-Identifier: BSD-3-Clause */
/* The outer end of COM1. */
#include "serial.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "labvm.h"

static int
listen_unix(struct serial *serial, const char *path, char *text)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct stat st;
	int fd;

	if (strlen(path) >= sizeof(addr.sun_path))
		return refuse(text, -ENAMETOOLONG, "--serial: path longer than %zu bytes",
			      sizeof(addr.sun_path) - 1);
	memcpy(addr.sun_path, path, strlen(path));
	/* a socket that an earlier labvm left behind, never another kind of file */
	if (!lstat(path, &st) && S_ISSOCK(st.st_mode))
		unlink(path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return refuse(text, -errno, "socket: %s", strerror(errno));
	if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 1)) {
		int err = errno;

		close(fd);
		return refuse(text, -err, "--serial: cannot listen at %s: %s", path, strerror(err));
	}
	serial->listen_fd = fd;
	serial->socket = true;
	serial->unlink_path = path;
	return 0;
}

/* Keys go to the guest one by one; Ctrl-C still ends labvm. */
static void
make_raw(struct serial *serial)
{
	struct termios raw;

	if (tcgetattr(STDIN_FILENO, &serial->tty))
		return;
	raw = serial->tty;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	serial->raw = !tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

int
serial_open(struct serial *serial, const char *target, char *text)
{
	memset(serial, 0, sizeof(*serial));
	pthread_mutex_init(&serial->lock, NULL);
	serial->out_fd = serial->in_fd = serial->listen_fd = -1;
	if (!strcmp(target, "null"))
		return 0;
	if (!strcmp(target, "stdio")) {
		serial->out_fd = STDOUT_FILENO;
		serial->in_fd = STDIN_FILENO;
		make_raw(serial);
		return 0;
	}
	if (!strncmp(target, "unix:", 5))
		return listen_unix(serial, target + 5, text);
	if (!strncmp(target, "file:", 5)) {
		serial->out_fd = open(target + 5,
				      O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NONBLOCK, 0644);
		return serial->out_fd < 0 ? refuse(text, -errno, "--serial: cannot write %s: %s",
						   target + 5, strerror(errno))
					  : 0;
	}
	return refuse(text, -EINVAL, "--serial %s: say stdio, null, unix:PATH or file:PATH",
		      target);
}

static void
hang_up(struct serial *serial)
{
	if (serial->out_fd > STDERR_FILENO)
		close(serial->out_fd);
	serial->out_fd = serial->in_fd = -1;
}

void
serial_close(struct serial *serial)
{
	if (serial->raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &serial->tty);
	hang_up(serial);
	if (serial->listen_fd >= 0)
		close(serial->listen_fd);
	if (serial->unlink_path)
		unlink(serial->unlink_path);
	pthread_mutex_destroy(&serial->lock);
}

void
serial_send(struct serial *serial, uint8_t value)
{
	struct pollfd pfd = {.fd = serial->out_fd, .events = POLLOUT};
	ssize_t n = -1;

	if (serial->socket && serial->out_fd >= 0)
		n = send(serial->out_fd, &value, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	else if (serial->out_fd >= 0 && poll(&pfd, 1, 0) == 1 && pfd.revents & POLLOUT)
		n = write(serial->out_fd, &value, 1); /* stdout's flags are not ours to change */
	if (n != 1)
		serial->dropped++;
}

void
serial_accept(struct serial *serial)
{
	int fd = accept4(serial->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	pthread_mutex_lock(&serial->lock);
	hang_up(serial);
	serial->out_fd = serial->in_fd = fd;
	pthread_mutex_unlock(&serial->lock);
}

size_t
serial_receive(struct serial *serial, uint8_t *bytes, size_t max)
{
	ssize_t n = read(serial->in_fd, bytes, max);

	if (n > 0)
		return (size_t)n;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	pthread_mutex_lock(&serial->lock);
	if (serial->socket)
		hang_up(serial);
	else
		serial->in_fd = -1;
	pthread_mutex_unlock(&serial->lock);
	return 0;
}
