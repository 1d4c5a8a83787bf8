/*
 * The one place where a data plane waits, for file operations and descriptors together. One call has two engines behind
 * it: io_uring, or poll(2) with pread and pwrite where io_uring is not allowed.
 */
#define _GNU_SOURCE
#include "reactor.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

static void free_reactor(struct reactor *reactor) {
  if (reactor->engine == XT_ENGINE_URING) uring_unmap(reactor);
  write_threads_close(reactor->write_threads);
  free(reactor->watches);
  free(reactor->polled);
  free(reactor->ready);
  free(reactor);
}

double xt_reactor_open(uint32_t depth, uint32_t max_watches, uint32_t engine) {
  if (depth == 0 || depth > XT_REACTOR_DEPTH_MAX || max_watches > XT_REACTOR_WATCHES_MAX) return -EINVAL;
  struct reactor *reactor = calloc(1, sizeof *reactor);
  if (!reactor) return -ENOMEM;
  reactor->uring.fd = -1;
  reactor->engine = engine;
  reactor->depth = depth;
  reactor->max_watches = max_watches;
  reactor->watches = calloc(max_watches + 1, sizeof *reactor->watches);
  reactor->polled = calloc(max_watches + 1, sizeof *reactor->polled);
  reactor->ready = calloc(depth + max_watches, sizeof *reactor->ready);
  int32_t error = !reactor->watches || !reactor->polled || !reactor->ready ? -ENOMEM
                  : engine == XT_ENGINE_URING                             ? uring_open(reactor)
                                                                          : 0;
  if (error == 0) return (double)(uintptr_t)reactor;
  free_reactor(reactor);
  return error;
}

/* Prepares them as long as a plane's jail does not forbid it. Without them, writes go to io_uring. */
static int have_threads(struct reactor *reactor) {
  if (reactor->write_threads) return 1;
  struct write_threads *threads = write_threads_open(reactor->depth);
  if (!threads) return 0;
  reactor->max_watches++;
  if (xt_reactor_watch(reactor, write_threads_fd(threads), XT_POLL_IN, WRITE_THREADS_TAG) >= 0) {
    reactor->write_threads = threads;
    return 1;
  }
  reactor->max_watches--;
  write_threads_close(threads);
  return 0;
}

int32_t xt_reactor_add_file(void *handle, int32_t fd, int32_t is_block_device) {
  struct reactor *reactor = handle;
  if (reactor->file_count == XT_REACTOR_FILES_MAX) return -ENOSPC;
  struct file *file = &reactor->files[reactor->file_count];
  *file = file_of(fd, is_block_device);
  file->is_written_by_threads = reactor->engine == XT_ENGINE_URING && write_threads_suit(file) && have_threads(reactor);
  return (int32_t)reactor->file_count++;
}

int32_t xt_reactor_watch(void *handle, int32_t fd, uint32_t events, uint32_t tag) {
  struct reactor *reactor = handle;
  uint32_t place = 0;
  while (place < reactor->watch_count && (reactor->watches[place].fd >= 0 || reactor->watches[place].armed)) place++;
  if (place == reactor->max_watches) return -ENOSPC;
  if (place == reactor->watch_count) reactor->watch_count++;
  struct watch *watch = &reactor->watches[place];
  *watch = (struct watch){.fd = fd, .tag = tag, .events = events, .generation = watch->generation + 1};
  return (int32_t)place;
}

int32_t xt_reactor_rewatch(void *handle, uint32_t place, uint32_t events) {
  struct reactor *reactor = handle;
  if (place >= reactor->watch_count || reactor->watches[place].fd < 0) return -EINVAL;
  reactor->watches[place].events = events;
  return 0;
}

int32_t xt_reactor_unwatch(void *handle, uint32_t place) {
  struct reactor *reactor = handle;
  int32_t error = xt_reactor_rewatch(reactor, place, 0);
  if (error == 0) reactor->watches[place].fd = -1;
  return error;
}

static uint32_t take_ready(struct reactor *reactor, struct xt_io_done *done, uint32_t max) {
  uint32_t taken = reactor->ready_count < max ? reactor->ready_count : max;
  memcpy(done, reactor->ready, taken * sizeof *done);
  memmove(reactor->ready, reactor->ready + taken, (reactor->ready_count - taken) * sizeof *done);
  reactor->ready_count -= taken;
  return taken;
}

/* If no operation has to end, one descriptor that is ready is enough. */
static uint32_t at_most_what_can_end(const struct reactor *reactor, uint32_t wait) {
  uint32_t most = reactor->in_flight + reactor->ready_count;
  return most == 0 && wait > 0 ? 1 : wait < most ? wait : most;
}

int32_t xt_reactor_wait(void *handle, const struct xt_io *ops, uint32_t count, uint32_t wait, int32_t timeout_us,
                        uint32_t is_patient, struct xt_io_done *done, uint32_t max) {
  struct reactor *reactor = handle;
  if (reactor->in_flight + reactor->ready_count + count > reactor->depth) return -EBUSY;
  for (uint32_t i = 0; i < count; i++)
    if (ops[i].file >= reactor->file_count) return -EBADF;
  if (reactor->engine == XT_ENGINE_URING) {
    uring_start(reactor, ops, count, is_patient != 0);
    wait = at_most_what_can_end(reactor, wait);
    uint32_t got = take_ready(reactor, done, max);
    int32_t more = uring_wait(reactor, got, wait, timeout_us, done + got, max - got);
    return more < 0 ? more : (int32_t)got + more;
  }
  for (uint32_t i = 0; i < count; i++)
    reactor_finish(reactor, ops[i].tag, file_perform(&reactor->files[ops[i].file], &ops[i]));
  int32_t error = poll_wait(reactor, at_most_what_can_end(reactor, wait), timeout_us);
  return error ? error : (int32_t)take_ready(reactor, done, max);
}

int32_t xt_reactor_close(void *handle) {
  struct reactor *reactor = handle;
  if (reactor->engine == XT_ENGINE_URING) uring_drain(reactor);
  free_reactor(reactor);
  return 0;
}
