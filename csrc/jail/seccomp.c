/*
 * The filter of system calls, made of the table in calls.h. What is not in the table fails with EPERM, because a call
 * that nobody thought of must not cost a guest its disk; what only an attacker would ask for ends the process. It says
 * so first: the kernel sends SIGSYS, and the handler writes a line to the log.
 */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "how does seccomp call this processor?"
#endif

enum {
  NEED_SIM = XT_JAIL_SIM,
  NEED_XEN = XT_JAIL_XEN,
  NEED_NBD = XT_JAIL_NBD,
  NEED_DIAL = XT_JAIL_DIAL,
  NEED_SERVICE = XT_JAIL_SERVICE,
  NEED_CHILD = XT_JAIL_CHILD,
  NEED_SHARE = XT_JAIL_SHARE,
  NEED_ACCEPT = XT_JAIL_ACCEPT,
  NEED_LOCAL = XT_JAIL_LOCAL,
};
/* What of a call's arguments is looked at. */
enum check { ANY, CHECK_IOCTL, SELF, CHILD, NO_CODE, NO_LIMIT, THREAD, NAMES, FLAGS, LOCKS, UNIX, STREAM };

static const struct call {
  uint32_t number, roles, needs;
  enum check check;
} calls[] = {
#define CALL(name, roles, needs, check, why) {SYS_##name, roles, needs, check},
#include "calls.h"
#undef CALL
};

static const struct request {
  uint32_t number, roles, needs;
} requests[] = {
#define IOCTL(name, number, roles, needs, why) {number, roles, needs},
#include "calls.h"
#undef IOCTL
};

static const struct fatal {
  uint32_t number;
  const char *name;
} fatal[] = {
#define FATAL(name, why) {SYS_##name, #name},
#include "calls.h"
#undef FATAL
};

/* Of fcntl. Locks, leases and whom signals go to are the business of whoever opened a file. */
static const uint32_t flags[] = {F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_SETFD, F_GETFL, F_SETFL};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Calls that are newer than this file do not exist here, so that the C library falls back to older ones. */
enum { NEWEST_CALL = SYS_landlock_restrict_self, X32_BIT = 0x40000000, PROGRAM_MAX = 2048 };

/* ---- making the program ---- */

struct program {
  struct sock_filter code[PROGRAM_MAX];
  uint16_t length;
  const struct filter_options *options;
};

static void emit(struct program *program, struct sock_filter instruction) {
  if (program->length < PROGRAM_MAX) program->code[program->length++] = instruction;
}

static void load(struct program *program, size_t offset) {
  emit(program, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offset));
}

static void load_number(struct program *program) { load(program, offsetof(struct seccomp_data, nr)); }

/* The lower half of an argument: both processors are little-endian. */
static void load_argument(struct program *program, int index) {
  load(program, offsetof(struct seccomp_data, args) + sizeof(uint64_t) * (size_t)index);
}

static void answer(struct program *program, uint32_t result) {
  emit(program, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, result));
}

static void answer_if_equal(struct program *program, uint32_t value, uint32_t result) {
  emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
  answer(program, result);
}

static void allow_if_argument(struct program *program, int index, uint32_t value) {
  load_argument(program, index);
  answer_if_equal(program, value, SECCOMP_RET_ALLOW);
}

/* Allows a call if none (`set` 0) or all of the one bit `bit` is in the argument. */
static void allow_if_bit(struct program *program, int index, uint32_t bit, int set) {
  load_argument(program, index);
  emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bit, set ? 0 : 1, set ? 1 : 0));
  answer(program, SECCOMP_RET_ALLOW);
}

static int concerns(const struct program *program, uint32_t roles, uint32_t needs) {
  const struct filter_options *options = program->options;
  return (roles & options->role) && (needs == 0 || (needs & options->needs));
}

static void allow_requests(struct program *program) {
  load_argument(program, 1);
  for (size_t i = 0; i < COUNT(requests); i++)
    if (concerns(program, requests[i].roles, requests[i].needs))
      answer_if_equal(program, requests[i].number, SECCOMP_RET_ALLOW);
}

/* A pointer that is NULL: both halves are 0. */
static void allow_if_null(struct program *program, int index) {
  load_argument(program, index);
  emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 3));
  load(program, offsetof(struct seccomp_data, args) + sizeof(uint64_t) * (size_t)index + sizeof(uint32_t));
  answer_if_equal(program, 0, SECCOMP_RET_ALLOW);
}

static void allow_checked(struct program *program, enum check check) {
  switch (check) {
    case ANY: answer(program, SECCOMP_RET_ALLOW); break;
    case CHECK_IOCTL: allow_requests(program); break;
    case SELF: allow_if_argument(program, 0, (uint32_t)getpid()); break;
    case CHILD: allow_if_argument(program, 0, (uint32_t)program->options->child); break;
    case NO_CODE: allow_if_bit(program, 2, PROT_EXEC, 0); break;
    case NO_LIMIT: allow_if_null(program, 2); break;
    case THREAD: allow_if_bit(program, 0, CLONE_THREAD, 1); break;
    case NAMES:
      allow_if_argument(program, 0, PR_SET_NAME);
      answer_if_equal(program, PR_GET_NAME, SECCOMP_RET_ALLOW);
      answer_if_equal(program, 0x53564d41 /* PR_SET_VMA */, SECCOMP_RET_ALLOW);
      break;
    case FLAGS:
      load_argument(program, 1);
      for (size_t i = 0; i < COUNT(flags); i++) answer_if_equal(program, flags[i], SECCOMP_RET_ALLOW);
      break;
    case LOCKS:
      allow_if_argument(program, 1, F_OFD_GETLK);
      answer_if_equal(program, F_OFD_SETLK, SECCOMP_RET_ALLOW);
      break;
    case UNIX: allow_if_argument(program, 0, AF_UNIX); break;
    case STREAM:
      allow_if_argument(program, 0, AF_UNIX);
      answer_if_equal(program, AF_INET, SECCOMP_RET_ALLOW);
      answer_if_equal(program, AF_INET6, SECCOMP_RET_ALLOW);
      break;
  }
}

/* A call may be in the table twice, for different reasons: what one entry does not allow, the next one may. */
static void allow(struct program *program, const struct call *call) {
  emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call->number, 1, 0));
  uint16_t over = program->length;
  emit(program, (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 0));
  allow_checked(program, call->check);
  load_number(program);
  program->code[over].k = (uint32_t)(program->length - over - 1);
}

static void make(struct program *program) {
  const uint32_t refuse = SECCOMP_RET_ERRNO | EPERM, unknown = SECCOMP_RET_ERRNO | ENOSYS;
  load(program, offsetof(struct seccomp_data, arch));
  emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 1, 0));
  answer(program, SECCOMP_RET_KILL_PROCESS);
  load_number(program);
  for (size_t i = 0; i < COUNT(calls); i++)
    if (concerns(program, calls[i].roles, calls[i].needs)) allow(program, &calls[i]);
  for (size_t i = 0; i < COUNT(fatal); i++) answer_if_equal(program, fatal[i].number, SECCOMP_RET_TRAP);
  /* Its flags are in memory, where no filter sees them. The C library then calls clone, whose flags are checked. */
  answer_if_equal(program, SYS_clone3, unknown);
  emit(program, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, NEWEST_CALL, 0, 1));
  answer(program, unknown);
  answer(program, refuse);
}

/* ---- the end of a process that broke out ---- */

enum { FROM_SECCOMP = 1 /* SYS_SECCOMP */ };

static const char *name_of(int number) {
  for (size_t i = 0; i < COUNT(fatal); i++)
    if (fatal[i].number == (uint32_t)number) return fatal[i].name;
  return "?";
}

static void end_process(int signal_number, siginfo_t *info, void *context) {
  char line[160], thread[16] = "?";
  (void)context;
  if (info->si_code != FROM_SECCOMP) return;
  prctl(PR_GET_NAME, thread);
  int length = snprintf(line, sizeof line, "xentool: jail: error: thread \"%.15s\" asked for %s (call %d): it ends here\n",
                        thread, name_of(info->si_syscall), info->si_syscall);
  if (write(STDERR_FILENO, line, (size_t)length) < 0) length = 0;
  signal(signal_number, SIG_DFL);
  syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), signal_number);
  _exit(128 + signal_number);
}

/* ---- entering ---- */

int jail_seccomp_is_there(void) {
  uint32_t action = SECCOMP_RET_KILL_PROCESS;
  return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) == 0;
}

int jail_seccomp_filter(const struct filter_options *options) {
  struct program program = {.options = options};
  struct sigaction end = {.sa_sigaction = end_process, .sa_flags = SA_SIGINFO | SA_NODEFER};
  make(&program);
  if (program.length == PROGRAM_MAX) return -E2BIG;
  if (options->every_thread && sigaction(SIGSYS, &end, NULL)) return -errno;
  struct sock_fprog filter = {.len = program.length, .filter = program.code};
  uint32_t flags = options->every_thread ? SECCOMP_FILTER_FLAG_TSYNC : 0;
  long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
  return result < 0 ? -errno : result > 0 ? -EBUSY : 0;
}
