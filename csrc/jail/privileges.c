/* What root can do and others cannot: capabilities, namespaces. */
#define _GNU_SOURCE
#include "jail.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int jail_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0; }

int jail_drop_capabilities(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {{0}};
  return syscall(SYS_capset, &header, none) ? -errno : 0;
}

static int is_already(uint32_t uid, uint32_t gid) {
  uid_t uids[3];
  gid_t gids[3];
  if (getresuid(&uids[0], &uids[1], &uids[2]) || getresgid(&gids[0], &gids[1], &gids[2])) return 0;
  for (int i = 0; i < 3; i++)
    if (uids[i] != uid || gids[i] != gid) return 0;
  return getgroups(0, NULL) == 0;
}

/* Whoever becomes somebody else no longer ends with its parent, until it asks for that again. */
int jail_become(uint32_t uid, uint32_t gid) {
  int end_signal = 0;
  pid_t parent = getppid();
  if (is_already(uid, gid)) return 0;
  if (prctl(PR_GET_PDEATHSIG, &end_signal)) return -errno;
  if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, gid, gid, gid)) return -errno;
  if (syscall(SYS_setresuid, uid, uid, uid)) return -errno;
  if (end_signal == 0) return 0;
  if (prctl(PR_SET_PDEATHSIG, end_signal)) return -errno;
  return getppid() == parent ? 0 : -ESRCH;
}

static int has(int capability) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
  if (syscall(SYS_capget, &header, data)) return 0;
  return (data[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability)) != 0;
}

int jail_may_make_namespaces(void) { return has(CAP_SYS_ADMIN); }

/* Also to give them their files, and to end them. */
int jail_may_become_others(void) {
  return has(CAP_SETUID) && has(CAP_SETGID) && has(CAP_CHOWN) && has(CAP_DAC_OVERRIDE) && has(CAP_KILL);
}

int jail_leave_network(void) { return unshare(CLONE_NEWNET) ? -errno : 0; }

static int is_in_network(int fd) {
  struct stat ours, wanted;
  /* As calls, because stat(2) is a function of the C library only since 2.33. */
  if (syscall(SYS_newfstatat, AT_FDCWD, "/proc/thread-self/ns/net", &ours, 0)) return 0;
  if (syscall(SYS_fstat, fd, &wanted)) return 0;
  return ours.st_dev == wanted.st_dev && ours.st_ino == wanted.st_ino;
}

int jail_join_network(int fd) { return is_in_network(fd) || setns(fd, CLONE_NEWNET) == 0 ? 0 : -errno; }

enum { INHERITED_MAX = 256 };

struct inherited {
  int fd;
  dev_t device;
  ino_t inode;
};

/* Whether an exec would pass it on. As a call, because fstat(2) is a function of the C library only since 2.33. */
static int is_passed_on(int fd, struct inherited *found) {
  struct stat about;
  if (fcntl(fd, F_GETFD) != 0 || syscall(SYS_fstat, fd, &about)) return 0;
  *found = (struct inherited){fd, about.st_dev, about.st_ino};
  return 1;
}

/* Returns how many there are, or -errno. */
static int find_inherited(struct inherited *found) {
  int count = 0;
  DIR *open = opendir("/proc/self/fd");
  if (!open) return -errno;
  for (const struct dirent *entry; count < INHERITED_MAX && (entry = readdir(open));) {
    int fd = atoi(entry->d_name);
    if (fd > STDERR_FILENO && is_passed_on(fd, &found[count])) count++;
  }
  closedir(open);
  return count;
}

/*
 * Another thread of Bun's may have one open for a moment: its memory statistics, for one. So nothing is taken for
 * inherited at the first look, and no number becomes free here: somebody would get it whose descriptor is closed then.
 */
int jail_empty_inherited(void) {
  const struct timespec moment = {.tv_nsec = 1000000};
  struct inherited found[INHERITED_MAX];
  int ends[2], error = 0, count = find_inherited(found);
  if (count <= 0) return count;
  if (pipe2(ends, O_CLOEXEC)) return -errno;
  close(ends[1]);
  nanosleep(&moment, NULL);
  for (int i = 0; i < count && !error; i++) {
    struct inherited now;
    if (!is_passed_on(found[i].fd, &now) || now.device != found[i].device || now.inode != found[i].inode) continue;
    /* EBUSY: somebody is just opening another file there. */
    if (dup3(ends[0], found[i].fd, O_CLOEXEC) < 0 && errno != EBUSY) error = -errno;
  }
  close(ends[0]);
  return error;
}
