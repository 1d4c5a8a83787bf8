/*
 * Some things Linux changes for one thread only: which files it reaches, its capabilities, its namespaces. A signal
 * makes every thread do the same for itself, as the C library does for setuid(2). A thread that is started meanwhile
 * inherits what its parent has by then, so threads are looked for until no new one is found.
 */
#define _GNU_SOURCE
#include "jail.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* The threads of an emulator never do it; a frontend has 10 seconds for its backend. */
enum { THREADS_MAX = 1024, PATIENCE_MS = 2000 };

struct thread {
  pid_t id;
  int is_done;
};

static struct {
  int (*work)(void);
  int failure, count;
  struct thread threads[THREADS_MAX];
} task;

static struct thread *find_thread(pid_t id) {
  int count = __atomic_load_n(&task.count, __ATOMIC_ACQUIRE);
  for (int i = 0; i < count; i++)
    if (task.threads[i].id == id) return &task.threads[i];
  return NULL;
}

static void do_task(int number) {
  (void)number;
  int saved = errno, result = task.work();
  struct thread *self = find_thread((pid_t)syscall(SYS_gettid));
  if (result) __atomic_store_n(&task.failure, result, __ATOMIC_RELAXED);
  if (self) __atomic_store_n(&self->is_done, 1, __ATOMIC_RELEASE);
  errno = saved;
}

/*
 * Bun's threads, its allocator's included, block no signal that a fault of their own sends, and of those nothing but
 * seccomp sends this one.
 */
enum { SIGNAL = SIGSYS };

/* Also when it is gone: one that is about to end takes a signal, and does nothing any more. */
static int is_over(const struct thread *thread) {
  if (__atomic_load_n(&thread->is_done, __ATOMIC_ACQUIRE)) return 1;
  return syscall(SYS_tgkill, getpid(), thread->id, 0) != 0;
}

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int wait_until_done(void) {
  const struct timespec moment = {.tv_nsec = 100000};
  const int64_t end = now_ms() + PATIENCE_MS;
  for (int i = 0; i < task.count;) {
    if (is_over(&task.threads[i])) i++;
    else if (now_ms() >= end) return -ETIMEDOUT;
    else nanosleep(&moment, NULL);
  }
  return 0;
}

/* One look at all threads. Returns how many new ones there were, or -errno. */
static int signal_new_threads(void) {
  int found = 0;
  DIR *threads = opendir("/proc/self/task");
  if (!threads) return -errno;
  for (const struct dirent *entry; (entry = readdir(threads));) {
    pid_t id = atoi(entry->d_name);
    if (id == 0 || find_thread(id)) continue;
    if (task.count == THREADS_MAX) {
      closedir(threads);
      return -EAGAIN;
    }
    task.threads[task.count] = (struct thread){.id = id};
    __atomic_add_fetch(&task.count, 1, __ATOMIC_RELEASE);
    found++;
    syscall(SYS_tgkill, getpid(), id, SIGNAL);
  }
  closedir(threads);
  return found;
}

int jail_on_every_thread(int (*work)(void)) {
  struct sigaction ours = {.sa_handler = do_task, .sa_flags = SA_RESTART}, before;
  task.work = work;
  task.failure = 0;
  task.threads[0] = (struct thread){(pid_t)syscall(SYS_gettid), 1};
  task.count = 1;
  sigfillset(&ours.sa_mask);
  if (sigaction(SIGNAL, &ours, &before)) return -errno;
  int found, result;
  do {
    found = signal_new_threads();
    result = found < 0 ? found : wait_until_done();
  } while (result == 0 && found > 0);
  /* A thread that is late keeps the handler: without one the signal would end the process. */
  if (result == 0) sigaction(SIGNAL, &before, NULL);
  /* Ourselves last, because the work may well take away what finds the others. */
  int own = work();
  return own ? own : result ? result : task.failure;
}
