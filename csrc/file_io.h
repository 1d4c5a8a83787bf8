/* Operations on a disk's file: how to perform them, and whether to do so immediately. */
#ifndef XENTOOL_FILE_IO_H
#define XENTOOL_FILE_IO_H

#include "xentool.h"

#include <sys/uio.h>

struct file {
  int fd, is_block_device, is_buffered;
  int is_written_by_threads; /* if the reactor's owner has real-time priority: write_threads.c */
  int nowait_flag;      /* preadv2 flags for a read that must not wait */
  uint32_t slow_transfers; /* number of further transfers left to io_uring because one took long */
  uint32_t cold_reads;     /* the same for reads that must not wait */
};

/* What an operation has beside it. NOTHING_ELSE_COMES: nobody minds if the call waits for it. */
enum company { WITH_OTHERS, ALONE, NOTHING_ELSE_COMES };

/* Inspects `fd`, which remains the caller's. */
struct file file_of(int fd, int is_block_device);
/* Performs one operation immediately and returns its result or -errno. */
int64_t file_perform(const struct file *file, const struct xt_io *op);
/* The kernel's preadv2; the C library has it only since 2.26. */
ssize_t file_preadv2(int fd, const struct iovec *vectors, int count, off_t offset, int flags);
/*
 * Performs the operation itself if that is faster than io_uring; returns true, with the result in `*result`, if it did.
 */
int file_did_at_once(struct file *file, const struct xt_io *op, enum company company, int64_t *result);

static inline int is_write(uint32_t op) { return op == XT_IO_WRITE || op == XT_IO_WRITEV; }
static inline int is_discard(uint32_t op) { return op == XT_IO_DISCARD || op == XT_IO_SECURE_DISCARD; }

#endif
