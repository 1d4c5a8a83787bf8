/*
 * Serves many sockets from one thread. Nothing here waits, and a peer that disconnects is reported as an error, never
 * as a signal.
 */
#define _GNU_SOURCE
#include "xentool.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/uio.h>

int32_t xt_socket_receive(int32_t fd, void *to, uint32_t size) {
  ssize_t received = recv(fd, to, size, MSG_DONTWAIT);
  return received < 0 ? -errno : (int32_t)received;
}

int32_t xt_socket_send(int32_t fd, const void *header, uint32_t header_size, const void *data, uint32_t data_size) {
  struct iovec parts[2] = {{(void *)header, header_size}, {(void *)data, data_size}};
  struct msghdr message = {.msg_iov = parts, .msg_iovlen = data_size ? 2 : 1};
  ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -errno : (int32_t)sent;
}

_Static_assert(sizeof(struct xt_poll) == sizeof(struct pollfd), "struct xt_poll is struct pollfd");
_Static_assert(offsetof(struct xt_poll, events) == offsetof(struct pollfd, events), "events lie where poll has them");
_Static_assert(offsetof(struct xt_poll, seen) == offsetof(struct pollfd, revents), "and so does what was seen");
_Static_assert(XT_POLL_IN == POLLIN && XT_POLL_OUT == POLLOUT, "events are poll's");
_Static_assert(XT_POLL_ERROR == POLLERR && XT_POLL_HANGUP == POLLHUP, "and so are failures");
