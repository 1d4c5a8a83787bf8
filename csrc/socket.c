/*
 * Serves many sockets from one thread. Nothing here waits, and a peer that disconnects is reported as an error, never
 * as a signal.
 */
#define _GNU_SOURCE
#include "xentool.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

int32_t xt_socket_receive(int32_t fd, void *to, uint32_t size) {
  ssize_t received = recv(fd, to, size, MSG_DONTWAIT);
  return received < 0 ? -errno : (int32_t)received;
}

int32_t xt_socket_send(int32_t fd, const void *header, uint32_t header_size, const void *data, uint32_t data_size) {
  struct iovec parts[2] = {{(void *)header, header_size}, {(void *)data, data_size}};
  return xt_socket_send_parts(fd, parts, data_size ? 2 : 1);
}

int32_t xt_socket_send_parts(int32_t fd, const void *parts, uint32_t count) {
  struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = count};
  ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -errno : (int32_t)sent;
}
