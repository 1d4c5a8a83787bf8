/*
 * The local end of a relay: sockets, pipes and standard streams. Other processes may share the standard streams, so we
 * must not change their O_NONBLOCK flag.
 */
#define _GNU_SOURCE
#include "xentool.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <linux/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BACKLOG = 16, ABSENCE_SECONDS = 30 };

union any_address {
  struct sockaddr generic;
  struct sockaddr_un local;
  struct sockaddr_in v4;
  struct sockaddr_in6 v6;
};

/* Returns the address length, or 0 with errno if it is not a valid address. */
static socklen_t parse_address(union any_address *to, const char *address, int32_t port) {
  memset(to, 0, sizeof *to);
  errno = EINVAL;
  if (port < 0) {
    if (strlen(address) >= sizeof to->local.sun_path) {
      errno = ENAMETOOLONG;
      return 0;
    }
    to->local.sun_family = AF_UNIX;
    strcpy(to->local.sun_path, address);
    return sizeof to->local;
  }
  if (inet_pton(AF_INET, address, &to->v4.sin_addr) == 1) {
    to->v4.sin_family = AF_INET;
    to->v4.sin_port = htons((uint16_t)port);
    return sizeof to->v4;
  }
  if (inet_pton(AF_INET6, address, &to->v6.sin6_addr) == 1) {
    to->v6.sin6_family = AF_INET6;
    to->v6.sin6_port = htons((uint16_t)port);
    return sizeof to->v6;
  }
  return 0;
}

static int32_t fail(int fd) {
  int32_t error = -errno;
  close(fd);
  return error;
}

/* A small write must not wait for the acknowledgement of the one before it. Meaningless for AF_UNIX. */
static void send_at_once(int fd, int family) {
  int one = 1;
  if (family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static void set_option(int fd, int level, int name, int value) { setsockopt(fd, level, name, &value, sizeof value); }

/* A host that vanishes while nothing is sent says nothing: after half a minute the connection fails. */
static void notice_absence(int fd, int family) {
  if (family == AF_UNIX) return;
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, ABSENCE_SECONDS / 2);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, ABSENCE_SECONDS / 6);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

/* Nor does it say anything about what was sent. To Linux, a peer that takes nothing for as long is the same. */
static void limit_sending(int fd, int family, int seconds) {
  if (family != AF_UNIX) set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, seconds * 1000);
}

int32_t xt_stream_connect(const char *address, int32_t port) {
  union any_address to;
  socklen_t length = parse_address(&to, address, port);
  if (length == 0) return -errno;
  int fd = socket(to.generic.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  send_at_once(fd, to.generic.sa_family);
  notice_absence(fd, to.generic.sa_family);
  limit_sending(fd, to.generic.sa_family, ABSENCE_SECONDS);
  if (connect(fd, &to.generic, length) && errno != EINPROGRESS) return fail(fd);
  return fd;
}

int32_t xt_stream_listen(const char *address, int32_t port) {
  union any_address to;
  char ours[sizeof to.local.sun_path];
  int one = 1, is_path = port < 0;
  /*
   * A path that exists must be listening. Between bind and listen, a client would be refused, and another server that
   * wants the path would take it for a dead one's. So the socket gets its final name last.
   */
  if (is_path && snprintf(ours, sizeof ours, "%s~%d", address, getpid()) >= (int)sizeof ours) return -ENAMETOOLONG;
  socklen_t length = parse_address(&to, is_path ? ours : address, port);
  if (length == 0) return -errno;
  int fd = socket(to.generic.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  if (!is_path) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(fd, &to.generic, length)) return fail(fd);
  int32_t error = listen(fd, BACKLOG) || (is_path && link(ours, address)) ? -errno : 0;
  if (is_path) unlink(ours);
  if (error) close(fd);
  return error == -EEXIST ? -EADDRINUSE : error ? error : fd;
}

int32_t xt_stream_accept(int32_t listener) {
  union any_address from;
  socklen_t length = sizeof from;
  int fd = accept4(listener, &from.generic, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return -errno;
  send_at_once(fd, from.generic.sa_family);
  notice_absence(fd, from.generic.sa_family);
  return fd;
}

void xt_stream_await_reader(int32_t fd) { set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 0); }

int32_t xt_stream_is_sending(int32_t fd) {
  struct tcp_info info = {0};
  socklen_t size = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size)) return 0;
  return info.tcpi_unacked > 0 || info.tcpi_notsent_bytes > 0;
}

int32_t xt_stream_end(int32_t fd) { return shutdown(fd, SHUT_WR) ? -errno : 0; }

int32_t xt_stream_skip(int32_t fd, int32_t is_socket) {
  char dropped[16384];
  ssize_t got = is_socket ? recv(fd, dropped, sizeof dropped, MSG_DONTWAIT) : read(fd, dropped, sizeof dropped);
  return got < 0 ? -errno : (int32_t)got;
}

int32_t xt_stream_pipe(int32_t *fds) { return pipe2(fds, O_CLOEXEC) ? -errno : 0; }

int32_t xt_stream_reopen(int32_t fd, int32_t writable) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int again = open(path, (writable ? O_WRONLY : O_RDONLY) | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  return again < 0 ? -errno : again;
}

int32_t xt_stream_discard(int32_t fd) {
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return -errno;
  int32_t error = dup2(null, fd) < 0 ? -errno : 0;
  close(null);
  return error;
}
