/*
 * Direct writes to a file, each in a thread that waits for it, where we have real-time priority. Through io_uring the
 * end of such a write passes through a worker of the kernel (seen with ext4 on Linux 6.18), which has normal
 * priority and so comes after everything that we do. A write that a thread waits for ends in that thread, which has
 * our priority. At normal priority io_uring is faster. Reads and block devices need no worker.
 *
 * Threads start when they are needed, and end when there was nothing to write for a while. They inherit the priority
 * and the jail of the thread that starts them.
 */
#define _GNU_SOURCE
#include "old_libc.h"
#include "write_threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* More than 16 threads were not faster. A stack has to hold the executable's thread-local variables, too. */
enum { THREADS_MAX = 16, STACK_BYTES = 256 << 10, IDLE_SECONDS = 5 };

struct write {
  const struct file *file;
  struct xt_io op;
};

struct write_threads {
  pthread_mutex_t lock;
  pthread_cond_t work, nobody;
  struct write *queue; /* a ring of `depth` */
  struct xt_io_done *done;
  uint32_t depth, head, queued, done_count;
  uint32_t threads, idle;
  uint32_t wanted; /* ends that the owner waits for; 0: it does not wait */
  int fd, is_closing;
  /* The owner's alone. */
  uint32_t in_flight, added;
};

int write_threads_suit(const struct file *file) {
  int policy = sched_getscheduler(0);
  return !file->is_block_device && !file->is_buffered && (policy == SCHED_FIFO || policy == SCHED_RR);
}

struct write_threads *write_threads_open(uint32_t depth) {
  struct write_threads *threads = calloc(1, sizeof *threads);
  if (!threads) return NULL;
  pthread_condattr_t clock;
  pthread_mutex_init(&threads->lock, NULL);
  pthread_condattr_init(&clock);
  pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
  pthread_cond_init(&threads->work, &clock);
  pthread_condattr_destroy(&clock);
  pthread_cond_init(&threads->nobody, NULL);
  threads->depth = depth;
  threads->queue = calloc(depth, sizeof *threads->queue);
  threads->done = calloc(depth, sizeof *threads->done);
  threads->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (threads->queue && threads->done && threads->fd >= 0) return threads;
  write_threads_close(threads);
  return NULL;
}

int write_threads_fd(const struct write_threads *threads) { return threads->fd; }

/* ---- a thread, which holds the lock except while it waits and writes ---- */

static int wait_for_work(struct write_threads *threads) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += IDLE_SECONDS;
  for (int error = 0; threads->queued == 0 && !threads->is_closing && error == 0;) {
    threads->idle++;
    error = pthread_cond_timedwait(&threads->work, &threads->lock, &until);
    threads->idle--;
  }
  return threads->queued > 0;
}

static void write_next(struct write_threads *threads) {
  struct write next = threads->queue[threads->head];
  threads->head = (threads->head + 1) % threads->depth;
  threads->queued--;
  pthread_mutex_unlock(&threads->lock);
  int64_t result = file_perform(next.file, &next.op);
  pthread_mutex_lock(&threads->lock);
  threads->done[threads->done_count++] = (struct xt_io_done){next.op.tag, (int32_t)result};
  if (threads->wanted == 0 || threads->done_count < threads->wanted) return;
  threads->wanted = 0;
  /* Without the lock, which the owner needs first when it wakes up. */
  pthread_mutex_unlock(&threads->lock);
  eventfd_write(threads->fd, 1);
  pthread_mutex_lock(&threads->lock);
}

static void *run(void *argument) {
  struct write_threads *threads = argument;
  pthread_mutex_lock(&threads->lock);
  while (wait_for_work(threads)) write_next(threads);
  if (--threads->threads == 0) pthread_cond_signal(&threads->nobody);
  pthread_mutex_unlock(&threads->lock);
  return NULL;
}

/* Signals are for other threads, but the one by which a process enters its jail is for every thread. */
static int start_thread(struct write_threads *threads) {
  sigset_t most, before;
  sigfillset(&most);
  sigdelset(&most, SIGSYS);
  pthread_attr_t attributes;
  pthread_t thread;
  if (pthread_attr_init(&attributes)) return 0;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  pthread_sigmask(SIG_SETMASK, &most, &before);
  int error = pthread_create(&thread, &attributes, run, threads);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  if (error) return 0;
  threads->threads++;
  return 1;
}

/* ---- the owner ---- */

int write_threads_add(struct write_threads *threads, const struct file *file, const struct xt_io *op) {
  pthread_mutex_lock(&threads->lock);
  if (threads->idle <= threads->queued && threads->threads < THREADS_MAX) start_thread(threads);
  int is_taken = threads->threads > 0;
  if (is_taken) threads->queue[(threads->head + threads->queued++) % threads->depth] = (struct write){file, *op};
  pthread_mutex_unlock(&threads->lock);
  threads->in_flight += (uint32_t)is_taken;
  threads->added += (uint32_t)is_taken;
  return is_taken;
}

/* Without the lock, which a thread needs first when it wakes up. */
void write_threads_begin(struct write_threads *threads) {
  for (; threads->added > 0; threads->added--) pthread_cond_signal(&threads->work);
}

uint32_t write_threads_in_flight(const struct write_threads *threads) { return threads->in_flight; }

uint32_t write_threads_take(struct write_threads *threads, struct xt_io_done *done, uint32_t max) {
  if (threads->in_flight == 0) return 0;
  uint32_t taken = 0;
  pthread_mutex_lock(&threads->lock);
  while (taken < max && threads->done_count > 0) done[taken++] = threads->done[--threads->done_count];
  pthread_mutex_unlock(&threads->lock);
  threads->in_flight -= taken;
  return taken;
}

int write_threads_await(struct write_threads *threads, uint32_t wanted) {
  pthread_mutex_lock(&threads->lock);
  int is_there = threads->done_count >= wanted;
  threads->wanted = is_there ? 0 : wanted;
  pthread_mutex_unlock(&threads->lock);
  return is_there;
}

void write_threads_woke(struct write_threads *threads) {
  pthread_mutex_lock(&threads->lock);
  threads->wanted = 0;
  pthread_mutex_unlock(&threads->lock);
}

void write_threads_close(struct write_threads *threads) {
  if (!threads) return;
  pthread_mutex_lock(&threads->lock);
  threads->is_closing = 1;
  pthread_cond_broadcast(&threads->work);
  while (threads->threads > 0) pthread_cond_wait(&threads->nobody, &threads->lock);
  pthread_mutex_unlock(&threads->lock);
  pthread_cond_destroy(&threads->work);
  pthread_cond_destroy(&threads->nobody);
  pthread_mutex_destroy(&threads->lock);
  if (threads->fd >= 0) close(threads->fd);
  free(threads->queue);
  free(threads->done);
  free(threads);
}
