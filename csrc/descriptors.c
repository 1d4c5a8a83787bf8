/*
 * Hands open files from one process to another over a pair of sockets that keeps messages apart. Each message has a
 * number, so that its taker knows whether these are the descriptors it has been told of. Nothing here waits.
 */
#define _GNU_SOURCE
#include "xentool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

union control {
  struct cmsghdr header;
  char space[CMSG_SPACE(sizeof(int32_t) * XT_DESCRIPTORS_MAX)];
};

int32_t xt_descriptors_pair(int32_t *ends, int32_t is_stream) {
  int kind = is_stream ? SOCK_STREAM : SOCK_SEQPACKET;
  return socketpair(AF_UNIX, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) ? -errno : 0;
}

int32_t xt_descriptors_adopt(int32_t fd) { return fcntl(fd, F_SETFD, FD_CLOEXEC) ? -errno : 0; }

int32_t xt_descriptors_send(int32_t socket, uint32_t number, const int32_t *fds, uint32_t count) {
  union control control = {.header = {.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
  struct iovec text = {&number, sizeof number};
  struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1};
  if (count == 0 || count > XT_DESCRIPTORS_MAX) return -EINVAL;
  control.header.cmsg_len = CMSG_LEN(sizeof *fds * count);
  memcpy(CMSG_DATA(&control.header), fds, sizeof *fds * count);
  message.msg_control = &control;
  message.msg_controllen = CMSG_SPACE(sizeof *fds * count);
  return sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int32_t xt_descriptors_receive(int32_t socket, uint32_t *number, int32_t *fds) {
  union control control;
  struct iovec text = {number, sizeof *number};
  struct msghdr message = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = &control,
                           .msg_controllen = sizeof control};
  ssize_t size = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0) return -errno;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (size != sizeof *number || (header && header->cmsg_type != SCM_RIGHTS)) return -EBADMSG;
  if (!header) return 0;
  size_t bytes = header->cmsg_len - CMSG_LEN(0);
  memcpy(fds, CMSG_DATA(header), bytes);
  return (int32_t)(bytes / sizeof *fds);
}
