/* Synchronous operations on a disk's file: reads, writes, flushes, discards. */
#define _GNU_SOURCE
#include "file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

struct file file_of(int fd, int is_block_device) {
  struct file file = {.fd = fd, .is_block_device = is_block_device};
  file.is_buffered = !is_block_device && !(fcntl(fd, F_GETFL) & O_DIRECT);
  /* tmpfs does not support the flag and does not need it: its data is in memory. */
  struct statfs file_system;
  int in_memory = fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC;
  file.nowait_flag = in_memory ? 0 : RWF_NOWAIT;
  return file;
}

static int64_t result_or_errno(int64_t result) { return result < 0 ? -errno : result; }

ssize_t file_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
  return syscall(SYS_preadv2, fd, vectors, count, offset, 0, flags);
}

/* Discarding on a block device is an ioctl, which io_uring cannot issue on the kernels in use. */
static int64_t discard_block_device(int fd, const struct xt_io *op) {
  uint64_t range[2] = {(uint64_t)op->offset, (uint64_t)op->length};
  int secure = op->op == XT_IO_SECURE_DISCARD;
  return result_or_errno(ioctl(fd, secure ? BLKSECDISCARD : BLKDISCARD, range));
}

int64_t file_perform(const struct file *file, const struct xt_io *op) {
  void *memory = (void *)(uintptr_t)op->address;
  off_t offset = (off_t)op->offset;
  switch (op->op) {
    case XT_IO_READ: return result_or_errno(pread(file->fd, memory, (size_t)op->length, offset));
    case XT_IO_WRITE: return result_or_errno(pwrite(file->fd, memory, (size_t)op->length, offset));
    case XT_IO_READV: return result_or_errno(preadv(file->fd, memory, (int)op->length, offset));
    case XT_IO_WRITEV: return result_or_errno(pwritev(file->fd, memory, (int)op->length, offset));
    case XT_IO_FLUSH: return result_or_errno(fdatasync(file->fd));
    case XT_IO_DISCARD:
      if (file->is_block_device) return discard_block_device(file->fd, op);
      return result_or_errno(
          fallocate(file->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)op->length));
    case XT_IO_SECURE_DISCARD:
      return file->is_block_device ? discard_block_device(file->fd, op) : -EOPNOTSUPP;
    default: return -EINVAL;
  }
}

int32_t xt_file_perform(int32_t fd, int32_t is_block_device, const struct xt_io *op) {
  struct file file = {.fd = fd, .is_block_device = is_block_device};
  return (int32_t)file_perform(&file, op);
}

int32_t xt_file_lock(int32_t fd, int32_t exclusive) {
  return flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB) ? -errno : 0;
}

int32_t xt_file_lock_range(int32_t fd, uint32_t first, uint32_t count) {
  struct flock range = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = first, .l_len = count};
  return fcntl(fd, F_OFD_SETLK, &range) ? -errno : 0;
}

/* The file's position means nothing to us: every operation names its own. */
double xt_file_size(int32_t fd) {
  off_t size = lseek(fd, 0, SEEK_END);
  return size < 0 ? -errno : (double)size;
}

int32_t xt_file_range_locked(int32_t fd, uint32_t first, uint32_t count) {
  struct flock range = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = first, .l_len = count};
  return fcntl(fd, F_OFD_GETLK, &range) ? -errno : range.l_type != F_UNLCK;
}
