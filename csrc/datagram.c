/*
 * One message to a unix datagram socket, as a service manager wants them. The address may be abstract, so that it has a
 * length instead of an end.
 */
#define _GNU_SOURCE
#include "xentool.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int32_t xt_datagram_send(const void *address, uint32_t address_size, const void *data, uint32_t data_size) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  if (address_size > sizeof to.sun_path) return -ENAMETOOLONG;
  memcpy(to.sun_path, address, address_size);
  int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + address_size);
  ssize_t sent = sendto(fd, data, data_size, MSG_NOSIGNAL, (struct sockaddr *)&to, length);
  int32_t result = sent < 0 ? -errno : (int32_t)sent;
  close(fd);
  return result;
}
