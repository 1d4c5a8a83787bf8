/*
 * Some things Linux changes for one thread only: which files it reaches, its capabilities, its namespaces. A signal
 * makes every thread do the same for itself, as the C library does for setuid(2). A thread that is started meanwhile
 * inherits what its parent has, so threads are looked for until no new one is found.
 */
#define _GNU_SOURCE
#include "jail.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 1024, PATIENCE_MS = 1000 };

static struct {
  int (*work)(void *);
  void *argument;
  int done, failure;
} task;

static void do_task(int number) {
  (void)number;
  int saved = errno, result = task.work(task.argument);
  if (result) __atomic_store_n(&task.failure, result, __ATOMIC_RELAXED);
  __atomic_add_fetch(&task.done, 1, __ATOMIC_RELEASE);
  errno = saved;
}

/*
 * Bun's threads, its allocator's included, block no signal that a fault of their own sends, and of those nothing but
 * seccomp sends this one.
 */
enum { SIGNAL = SIGSYS };

static int wait_until_done(int count) {
  const struct timespec moment = {.tv_nsec = 100000};
  for (int i = 0; i < PATIENCE_MS * 10; i++) {
    if (__atomic_load_n(&task.done, __ATOMIC_ACQUIRE) >= count) return 0;
    nanosleep(&moment, NULL);
  }
  return -ETIMEDOUT;
}

struct seen {
  pid_t threads[THREADS_MAX];
  int count;
};

static int is_new(const struct seen *seen, pid_t thread) {
  for (int i = 0; i < seen->count; i++)
    if (seen->threads[i] == thread) return 0;
  return 1;
}

/* One look at all threads. Returns how many new ones there were, or -errno. */
static int signal_new_threads(struct seen *seen) {
  int found = 0;
  DIR *threads = opendir("/proc/self/task");
  if (!threads) return -errno;
  for (const struct dirent *entry; (entry = readdir(threads));) {
    pid_t thread = atoi(entry->d_name);
    if (thread == 0 || !is_new(seen, thread)) continue;
    if (seen->count == THREADS_MAX) {
      closedir(threads);
      return -EAGAIN;
    }
    seen->threads[seen->count++] = thread;
    found++;
    /* A thread that ended meanwhile needs nothing any more. */
    if (syscall(SYS_tgkill, getpid(), thread, SIGNAL)) __atomic_add_fetch(&task.done, 1, __ATOMIC_RELEASE);
  }
  closedir(threads);
  return found;
}

int jail_on_every_thread(int (*work)(void *), void *argument) {
  struct sigaction ours = {.sa_handler = do_task, .sa_flags = SA_RESTART}, before;
  struct seen seen = {.threads = {(pid_t)syscall(SYS_gettid)}, .count = 1};
  task.work = work;
  task.argument = argument;
  task.done = task.failure = 0;
  sigfillset(&ours.sa_mask);
  if (sigaction(SIGNAL, &ours, &before)) return -errno;
  int found, result;
  do {
    found = signal_new_threads(&seen);
    result = found < 0 ? found : wait_until_done(seen.count - 1);
  } while (result == 0 && found > 0);
  /* A thread that is late keeps the handler: without one the signal would end the process. */
  if (result == 0) sigaction(SIGNAL, &before, NULL);
  /* Ourselves last, because the work may well take away what finds the others. */
  int own = work(argument);
  return own ? own : result ? result : task.failure;
}
