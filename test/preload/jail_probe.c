/*
 * Loaded into xentool by tests (LD_PRELOAD): probes a jail from inside, thread by thread. SIGTRAP makes the thread that
 * gets it ask for what it should not get, among that the file $JAIL_PROBE_FILE, and append a line to the file
 * $JAIL_PROBE: its number, its name, and an errno for each question (0: it got it). It is one of the few signals that
 * no thread of Bun's blocks, but Bun handles it, so SIGUSR1 takes it over first and appends "ready". SIGVTALRM makes a
 * thread ask for execve.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int answers = -1;
static const char *secret = "/etc/shadow";

static int code(long number, long a, long b, long c, long d, long e) {
  errno = 0;
  return syscall(number, a, b, c, d, e) == -1 ? errno : 0;
}

static void probe(int number) {
  int saved = errno;
  (void)number;
  char line[512], name[16] = "?";
  prctl(PR_GET_NAME, name);
  const struct {
    const char *name;
    int error;
  } asked[] = {
      {"open", code(SYS_openat, AT_FDCWD, (long)"/etc/passwd", O_RDONLY, 0, 0)},
      {"secret", code(SYS_openat, AT_FDCWD, (long)secret, O_RDONLY, 0, 0)},
      {"create", code(SYS_openat, AT_FDCWD, (long)"/tmp/xentool-jail-leak", O_RDWR | O_CREAT, 0600, 0)},
      {"socket", code(SYS_socket, AF_INET, SOCK_STREAM, 0, 0, 0)},
      {"netlink", code(SYS_socket, AF_NETLINK, SOCK_RAW, 0, 0, 0)},
      {"connect", code(SYS_connect, -1, 0, 0, 0, 0)},
      {"bind", code(SYS_bind, -1, 0, 0, 0, 0)},
      {"listen", code(SYS_listen, -1, 0, 0, 0, 0)},
      {"kill", code(SYS_kill, 1, 0, 0, 0, 0)},
      {"fork", code(SYS_clone, SIGCHLD, 0, 0, 0, 0)},
      {"io_uring_setup", code(SYS_io_uring_setup, 1, 0, 0, 0, 0)},
      {"code", code(SYS_mmap, 0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1)},
      {"ioctl", code(SYS_ioctl, 0, 0x5412 /* TIOCSTI */, 0, 0, 0)},
      {"flock", code(SYS_flock, -1, LOCK_UN, 0, 0, 0)},
      {"lock", code(SYS_fcntl, -1, F_SETLK, 0, 0, 0)},
      {"lockw", code(SYS_fcntl, -1, F_SETLKW, 0, 0, 0)},
      {"ofd-lock", code(SYS_fcntl, -1, F_OFD_SETLK, 0, 0, 0)},
      {"ofd-lockw", code(SYS_fcntl, -1, F_OFD_SETLKW, 0, 0, 0)},
      {"lease", code(SYS_fcntl, -1, F_SETLEASE, F_UNLCK, 0, 0)},
      {"owner", code(SYS_fcntl, -1, F_SETOWN, 1, 0, 0)},
      {"dumpable", code(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0)},
  };
  int length = snprintf(line, sizeof line, "%ld\t%s", syscall(SYS_gettid), name);
  for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
    length += snprintf(line + length, sizeof line - (size_t)length, "\t%s=%d", asked[i].name, asked[i].error);
  line[length] = '\n';
  if (write(answers, line, (size_t)length + 1) < 0) _exit(99);
  errno = saved;
}

static void break_out(int number) {
  (void)number;
  execl("/bin/true", "true", (char *)NULL);
}

static void handle(int number, void (*handler)(int)) {
  struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigaction(number, &act, NULL);
}

static void take_trap(int number) {
  int saved = errno;
  (void)number;
  handle(SIGTRAP, probe);
  if (write(answers, "ready\n", 6) < 0) _exit(99);
  errno = saved;
}

__attribute__((constructor)) static void prepare(void) {
  const char *path = getenv("JAIL_PROBE");
  if (!path) return;
  if (getenv("JAIL_PROBE_FILE")) secret = getenv("JAIL_PROBE_FILE");
  answers = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  handle(SIGUSR1, take_trap);
  handle(SIGVTALRM, break_out);
}
