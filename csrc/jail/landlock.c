/* Landlock: of all files, only those beneath a few directories. Descriptors that are open stay as they are. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* linux/landlock.h, which older systems do not have. */
enum {
  FS_EXECUTE = 1 << 0,
  FS_WRITE_FILE = 1 << 1,
  FS_READ_FILE = 1 << 2,
  FS_READ_DIR = 1 << 3,
  FS_REMOVE_DIR = 1 << 4,
  FS_REMOVE_FILE = 1 << 5,
  FS_MAKE_DIR = 1 << 7,
  FS_MAKE_REG = 1 << 8,
  FS_MAKE_FIFO = 1 << 10,
  FS_REFER = 1 << 13,     /* since version 2 */
  FS_TRUNCATE = 1 << 14,  /* since 3 */
  FS_IOCTL_DEV = 1 << 15, /* since 5 */
  FS_ALL_FIRST = (1 << 13) - 1,
  FOR_FILES = FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV,
  RULE_PATH_BENEATH = 1,
};

struct ruleset {
  uint64_t handled;
};
struct path_rule {
  uint64_t allowed;
  int32_t directory;
} __attribute__((packed));

int jail_landlock_version(void) {
  long version = syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */);
  return version < 0 ? 0 : (int)version;
}

static uint64_t handled_by(int version) {
  uint64_t handled = FS_ALL_FIRST;
  if (version >= 2) handled |= FS_REFER;
  if (version >= 3) handled |= FS_TRUNCATE;
  if (version >= 5) handled |= FS_IOCTL_DEV;
  return handled;
}

static uint64_t rights_of(uint32_t access) {
  uint64_t rights = 0;
  if (access & XT_JAIL_READ) rights |= FS_READ_FILE | FS_READ_DIR;
  if (access & XT_JAIL_WRITE) rights |= FS_WRITE_FILE | FS_TRUNCATE | FS_IOCTL_DEV;
  if (access & XT_JAIL_MAKE) rights |= FS_MAKE_REG | FS_MAKE_DIR | FS_MAKE_FIFO;
  if (access & XT_JAIL_REMOVE) rights |= FS_REMOVE_FILE | FS_REMOVE_DIR;
  return rights;
}

/* A path that does not exist needs no rule. */
static int add_rule(int ruleset, const char *path, uint32_t access, uint64_t handled) {
  struct path_rule rule = {.allowed = rights_of(access) & handled};
  rule.directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (rule.directory < 0 && errno == ENOTDIR) {
    rule.allowed &= FOR_FILES;
    rule.directory = open(path, O_PATH | O_CLOEXEC);
  }
  if (rule.directory < 0) return errno == ENOENT ? 0 : -errno;
  int error = syscall(SYS_landlock_add_rule, ruleset, RULE_PATH_BENEATH, &rule, 0) ? -errno : 0;
  close(rule.directory);
  return error;
}

int jail_landlock_rules(const char *paths) {
  struct ruleset attributes = {handled_by(jail_landlock_version())};
  int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
  if (ruleset < 0) return -errno;
  for (; *paths; paths += strlen(paths) + 1) {
    int error = add_rule(ruleset, paths + 1, (uint8_t)*paths, attributes.handled);
    if (!error) continue;
    close(ruleset);
    return error;
  }
  return ruleset;
}

int jail_landlock_restrict(int ruleset) { return syscall(SYS_landlock_restrict_self, ruleset, 0) ? -errno : 0; }
