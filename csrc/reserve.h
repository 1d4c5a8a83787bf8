/* Allocates a file's memory for a range that is about to be mapped. */
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>

/*
 * Storing to a hole of a mapped file kills the process with SIGBUS if the file system is full. Reserving the range
 * first turns that into -ENOSPC.
 */
static inline int xt_reserve(int fd, uint64_t offset, uint64_t size) {
  int error;
  do error = posix_fallocate(fd, (off_t)offset, (off_t)size);
  while (error == EINTR);
  return -error;
}
