/*
 * The jail from inside: each test is a child that enters one, beside a thread that was there before, and then asks for
 * what it must not get. What ends a process does so with a line in the log.
 */
#define _GNU_SOURCE
#include "check.h"
#include "jail/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char dir[64], name[96];
static const uint32_t ALL = XT_JAIL_PRIVILEGES | XT_JAIL_NETWORK | XT_JAIL_FILES | XT_JAIL_CALLS;

static void enter(uint32_t needs) {
  char paths[192];
  snprintf(paths, sizeof paths, "\x0f%s%c\x01/dev/null%c\x01/no/such/path%c", dir, 0, 0, 0);
  uint32_t parts = ALL & xt_jail_support();
  int32_t failure = -1;
  CHECK_EQUAL(xt_jail_enter(parts, needs, 0, 0, 0, paths, &failure), (int32_t)parts);
  CHECK_EQUAL(failure, 0);
}

/* Runs `body` in a child, whose end is returned; what it writes to stderr goes to `text`. */
static int run(void (*body)(int), int argument, char *text, size_t size) {
  int ends[2];
  CHECK_EQUAL(pipe(ends), 0);
  pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    body(argument);
    _exit(0);
  }
  close(ends[1]);
  size_t got = 0;
  for (ssize_t more; (more = read(ends[0], text + got, size - 1 - got)) > 0;) got += (size_t)more;
  text[got] = 0;
  close(ends[0]);
  int status;
  CHECK_EQUAL(waitpid(child, &status, 0), child);
  return status;
}

static void expect_clean(void (*body)(int), int argument) {
  char text[512];
  int status = run(body, argument, text, sizeof text);
  if (status) fprintf(stderr, "%s\n", text);
  CHECK_EQUAL(status, 0);
}

#define REFUSED(call, error)                                                                                          \
  do {                                                                                                                 \
    errno = 0;                                                                                                         \
    CHECK_EQUAL((int)(call), -1);                                                                                      \
    CHECK_EQUAL(errno, error);                                                                                         \
  } while (0)

/* ---- probes ---- */

static void ask_for_what_nobody_gets(void) {
  REFUSED(kill(1, 0), EPERM);
  REFUSED(socket(AF_INET, SOCK_STREAM, 0), EPERM);
  REFUSED(socket(AF_UNIX, SOCK_STREAM, 0), EPERM);
  REFUSED(connect(0, NULL, 0), EPERM);
  REFUSED(listen(0, 1), EPERM);
  REFUSED(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0), EPERM);
  REFUSED(syscall(SYS_clone3, NULL, 0), ENOSYS);
  REFUSED(syscall(1 << 20), ENOSYS);
  REFUSED(syscall(SYS_tgkill, getppid(), getppid(), 0), EPERM);
  REFUSED((intptr_t)mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), EPERM);
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(page != MAP_FAILED);
  REFUSED(mprotect(page, 4096, PROT_READ | PROT_EXEC), EPERM);
  munmap(page, 4096);
}

/* Those of its image are shared with the process that opened it. */
static void ask_to_unlock(int fd) {
  struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
  REFUSED(flock(fd, LOCK_UN), EPERM);
  REFUSED(fcntl(fd, F_OFD_SETLK, &all), EPERM);
  REFUSED(fcntl(fd, F_OFD_SETLKW, &all), EPERM);
  REFUSED(fcntl(fd, F_SETLK, &all), EPERM);
  REFUSED(fcntl(fd, F_SETLKW, &all), EPERM);
}

static void *nothing(void *argument) { return argument; }

static void ask_for_threads(void) {
  pthread_t thread;
  CHECK_EQUAL(pthread_create(&thread, NULL, nothing, NULL), 0);
  pthread_join(thread, NULL);
}

/* ---- before and after ---- */

static pthread_barrier_t entered;

static void *other_thread(void *unused) {
  pthread_barrier_wait(&entered);
  pthread_barrier_wait(&entered);
  if (xt_jail_support() & XT_JAIL_FILES) REFUSED(open("/etc/passwd", O_RDONLY), EACCES);
  if (xt_jail_support() & XT_JAIL_FILES) REFUSED(open("/etc/shadow", O_RDWR), EACCES);
  REFUSED(kill(1, 0), EPERM);
  return unused;
}

/* As it is for the thread that opened it and is about to close it: nobody else gets its number meanwhile. */
static void expect_empty(int inherited) {
  char byte;
  CHECK_EQUAL(fcntl(inherited, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(read(inherited, &byte, 1), 0);
  CHECK_EQUAL(close(inherited), 0);
}

static void control(int needs) {
  pthread_t thread;
  pthread_barrier_init(&entered, NULL, 2);
  CHECK_EQUAL(pthread_create(&thread, NULL, other_thread, NULL), 0);
  pthread_barrier_wait(&entered);
  int inherited = open("/proc/self/statm", O_RDONLY), kept = fcntl(0, F_DUPFD_CLOEXEC, 0);
  enter((uint32_t)needs);
  expect_empty(inherited);
  CHECK_EQUAL(fcntl(kept, F_GETFD), FD_CLOEXEC);
  pthread_barrier_wait(&entered);
  pthread_join(thread, NULL);
  ask_for_what_nobody_gets();
  ask_for_threads();
  int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  CHECK_EQUAL(ftruncate(fd, 4096), 0);
  ask_to_unlock(fd);
  CHECK_EQUAL(unlink(name), 0);
  CHECK(open("/dev/null", O_RDONLY) >= 0);
  if (xt_jail_support() & XT_JAIL_FILES) REFUSED(open("/etc/passwd", O_RDONLY), EACCES);
}

static void plane(int needs) {
  enter((uint32_t)needs);
  char paths[96];
  snprintf(paths, sizeof paths, "\x08%s%c", dir, 0);
  uint32_t parts = ALL & xt_jail_support();
  int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  CHECK(fd >= 0);
  CHECK_EQUAL(xt_jail_enter_plane(parts, (uint32_t)needs, paths), 0);
  ask_for_what_nobody_gets();
  ask_for_threads();
  REFUSED(open(name, O_RDWR), EPERM);
  REFUSED(open("/dev/null", O_RDONLY), EPERM);
  REFUSED(syscall(SYS_io_uring_setup, 1, NULL), EPERM);
  REFUSED(syscall(SYS_seccomp, 1, 0, NULL), EPERM);
  ask_to_unlock(fd);
  if (needs & XT_JAIL_SIM) CHECK_EQUAL(unlinkat(AT_FDCWD, name, 0), 0);
  else REFUSED(unlinkat(AT_FDCWD, name, 0), EPERM);
  CHECK_EQUAL(write(fd, "x", 1), 1);
}

/* ---- beside threads that come and go ---- */

static void sleep_ms(long ms) {
  const struct timespec time = {.tv_nsec = ms * 1000000};
  nanosleep(&time, NULL);
}

/* As a thread of the C library that is about to end: signals reach it, and are never handled. */
static void *ending_thread(void *unused) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  pthread_barrier_wait(&entered);
  sleep_ms(200);
  return unused;
}

static void *short_thread(void *unused) {
  sleep_ms(50);
  return unused;
}

/* Those that it starts when it is in the jail itself are there already. */
static void *starting_thread(void *unused) {
  pthread_barrier_wait(&entered);
  for (int i = 0; i < 40; i++) {
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, short_thread, NULL), 0);
    pthread_detach(thread);
    sleep_ms(10);
  }
  if (xt_jail_support() & XT_JAIL_FILES) REFUSED(open("/etc/passwd", O_RDONLY), EACCES);
  return unused;
}

static void enter_beside(void *(*one)(void *), void *(*other)(void *)) {
  pthread_t threads[2];
  pthread_barrier_init(&entered, NULL, 3);
  CHECK_EQUAL(pthread_create(&threads[0], NULL, one, NULL), 0);
  CHECK_EQUAL(pthread_create(&threads[1], NULL, other, NULL), 0);
  pthread_barrier_wait(&entered);
  enter(0);
  pthread_join(threads[0], NULL);
  pthread_join(threads[1], NULL);
}

static void beside_ending_threads(int unused) {
  (void)unused;
  enter_beside(ending_thread, ending_thread);
}

static void beside_starting_threads(int unused) {
  (void)unused;
  enter_beside(starting_thread, ending_thread);
}

/* ---- somebody else ---- */

enum { SOMEBODY = 65543 };

static void expect_somebody(void) {
  uid_t uids[3];
  gid_t gids[3];
  CHECK_EQUAL(getresuid(&uids[0], &uids[1], &uids[2]), 0);
  CHECK_EQUAL(getresgid(&gids[0], &gids[1], &gids[2]), 0);
  for (int i = 0; i < 3; i++) CHECK(uids[i] == SOMEBODY && gids[i] == SOMEBODY);
  CHECK_EQUAL(getgroups(0, NULL), 0);
  REFUSED(open(name, O_RDONLY), EACCES);
}

static void *somebodys_thread(void *unused) {
  pthread_barrier_wait(&entered);
  pthread_barrier_wait(&entered);
  expect_somebody();
  return unused;
}

/* Without Landlock, so that it is the file's owner who counts. */
static void become_somebody(int unused) {
  pthread_t thread;
  int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600), signal = 0;
  CHECK(fd >= 0);
  CHECK_EQUAL(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
  pthread_barrier_init(&entered, NULL, 2);
  CHECK_EQUAL(pthread_create(&thread, NULL, somebodys_thread, NULL), 0);
  pthread_barrier_wait(&entered);
  const uint32_t parts = XT_JAIL_PRIVILEGES | XT_JAIL_USER;
  int32_t failure = -1;
  CHECK_EQUAL(xt_jail_enter(parts, (uint32_t)unused, 0, SOMEBODY, SOMEBODY, "", &failure), (int32_t)parts);
  CHECK_EQUAL(failure, 0);
  pthread_barrier_wait(&entered);
  pthread_join(thread, NULL);
  expect_somebody();
  CHECK_EQUAL(write(fd, "x", 1), 1);
  CHECK_EQUAL(prctl(PR_GET_PDEATHSIG, &signal), 0);
  CHECK_EQUAL(signal, SIGKILL);
}

/* ---- what ends a process ---- */

static const struct {
  int number;
  const char *name;
} FATAL_CALLS[] = {
#define FATAL(name, why) {SYS_##name, #name},
#include "jail/calls.h"
#undef FATAL
};

static void break_out(int index) {
  enter(XT_JAIL_SIM | XT_JAIL_XEN | XT_JAIL_NBD | XT_JAIL_SERVICE | XT_JAIL_CHILD);
  syscall(FATAL_CALLS[index].number, -1, -1, -1, -1, -1, -1);
}

static void test_breaking_out(void) {
  for (size_t i = 0; i < sizeof FATAL_CALLS / sizeof *FATAL_CALLS; i++) {
    char text[512], wanted[64];
    int status = run(break_out, (int)i, text, sizeof text);
    CHECK(WIFSIGNALED(status));
    CHECK_EQUAL(WTERMSIG(status), SIGSYS);
    snprintf(wanted, sizeof wanted, " asked for %s (call %d)", FATAL_CALLS[i].name, FATAL_CALLS[i].number);
    CHECK(strstr(text, wanted));
  }
}

int main(void) {
  snprintf(dir, sizeof dir, "/tmp/xentool-ctest-XXXXXX");
  CHECK(mkdtemp(dir));
  snprintf(name, sizeof name, "%s/file", dir);
  expect_clean(control, 0);
  expect_clean(plane, 0);
  expect_clean(plane, XT_JAIL_SIM);
  expect_clean(beside_ending_threads, 0);
  expect_clean(beside_starting_threads, 0);
  if (xt_jail_support() & XT_JAIL_USER) expect_clean(become_somebody, 0);
  unlink(name);
  if (xt_jail_support() & XT_JAIL_CALLS) test_breaking_out();
  CHECK_EQUAL(rmdir(dir), 0);
  return 0;
}
