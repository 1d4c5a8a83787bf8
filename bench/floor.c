/*
 * The least that a direct request of 4 KiB can take where two processes take turns: the guest posts it through a pipe
 * and sleeps, the backend does the I/O and posts back. Nothing else happens: no ring, no grants, no JavaScript.
 *
 *   floor FILE read|write wait|async alone|pipe MILLISECONDS
 *
 * `wait`: preadv(2) or pwritev(2); `async`: the kernel's aio, whose completions take the same way as io_uring's.
 * `alone`: one process that does the I/O without a guest. Prints one JSON object, times in microseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, MOST = 1 << 20 };

static int fd, is_write, is_async;
static uint64_t blocks, random_state = 0x9e3779b97f4a7c15;
static aio_context_t context;
static uint8_t *memory;

static void fail(const char *what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static off_t random_offset(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (off_t)(random_state % blocks * BLOCK);
}

static int64_t transfer_async(off_t offset) {
  struct iocb one = {.aio_fildes = (uint32_t)fd, .aio_offset = offset, .aio_buf = (uintptr_t)memory};
  struct iocb *list = &one;
  struct io_event event;
  one.aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
  one.aio_nbytes = BLOCK;
  if (syscall(SYS_io_submit, context, 1, &list) != 1) fail("io_submit");
  if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1) fail("io_getevents");
  return event.res;
}

static void transfer(void) {
  off_t offset = random_offset();
  int64_t done = is_async ? transfer_async(offset)
                 : is_write ? pwrite(fd, memory, BLOCK, offset)
                            : pread(fd, memory, BLOCK, offset);
  if (done != BLOCK) fail("I/O");
}

/* Answers each byte with a byte, until the guest is gone. */
static void serve(int from, int to) {
  char byte;
  while (read(from, &byte, 1) == 1) {
    transfer();
    if (write(to, &byte, 1) != 1) break;
  }
  exit(0);
}

static void ask(int to, int from) {
  char byte = 0;
  if (write(to, &byte, 1) != 1 || read(from, &byte, 1) != 1) fail("the backend is gone");
}

static int by_size(const void *a, const void *b) {
  float one = *(const float *)a, other = *(const float *)b;
  return (one > other) - (one < other);
}

int main(int argc, char **argv) {
  if (argc != 6) return 2;
  is_write = strcmp(argv[2], "write") == 0;
  is_async = strcmp(argv[3], "async") == 0;
  int is_alone = strcmp(argv[4], "alone") == 0, asks[2], answers[2];
  double until = now_us() + atof(argv[5]) * 1000;
  fd = open(argv[1], O_RDWR | O_DIRECT | O_CLOEXEC);
  if (fd < 0 || (blocks = (uint64_t)lseek(fd, 0, SEEK_END) / BLOCK) == 0) fail(argv[1]);
  memory = aligned_alloc(BLOCK, BLOCK);
  float *times = malloc(MOST * sizeof *times);
  if (!memory || !times || pipe2(asks, O_CLOEXEC) || pipe2(answers, O_CLOEXEC)) fail("memory or pipes");
  memset(memory, 7, BLOCK);
  pid_t backend = is_alone ? 0 : fork();
  if (backend < 0) fail("fork");
  if (backend == 0 && syscall(SYS_io_setup, 1, &context)) fail("io_setup");
  if (!is_alone && backend == 0) {
    close(asks[1]);
    serve(asks[0], answers[1]);
  }
  close(answers[1]);
  size_t count = 0;
  for (double begin = now_us(); begin < until && count < MOST; count++) {
    if (is_alone) transfer();
    else ask(asks[1], answers[0]);
    double end = now_us();
    times[count] = (float)(end - begin);
    begin = end;
  }
  close(asks[1]);
  if (!is_alone) waitpid(backend, NULL, 0);
  qsort(times, count, sizeof *times, by_size);
  printf("{\"count\": %zu, \"p50\": %.0f, \"p90\": %.0f, \"p99\": %.0f, \"p999\": %.0f}\n", count, times[count / 2],
         times[count * 9 / 10], times[count * 99 / 100], times[count * 999 / 1000]);
  return 0;
}
