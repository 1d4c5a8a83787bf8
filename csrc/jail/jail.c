/* Enters a jail: every thread of the process at first, and later each plane a narrower one of its own. */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

uint32_t xt_jail_support(void) {
  uint32_t parts = XT_JAIL_PRIVILEGES;
  if (jail_may_make_namespaces()) parts |= XT_JAIL_NETWORK;
  if (jail_landlock_version() > 0) parts |= XT_JAIL_FILES;
  if (jail_seccomp_is_there()) parts |= XT_JAIL_CALLS;
  if (jail_may_become_others()) parts |= XT_JAIL_USER;
  return parts;
}

/* What each thread does for itself. -1: not this. */
static struct steps {
  int network, ruleset;
  int64_t uid;
  uint32_t gid;
} steps;

static int take_steps(void) {
  int error = jail_no_new_privileges();
  if (!error && steps.network >= 0) error = jail_join_network(steps.network);
  if (!error && steps.ruleset >= 0) error = jail_landlock_restrict(steps.ruleset);
  if (!error && steps.uid >= 0) error = jail_become((uint32_t)steps.uid, steps.gid);
  return error ? error : jail_drop_capabilities();
}

/* The descriptor of a network that this thread is alone in; -1 if that cannot be had. */
static int new_network(void) {
  char name[64];
  if (jail_leave_network()) return -1;
  snprintf(name, sizeof name, "/proc/self/task/%ld/ns/net", syscall(SYS_gettid));
  return open(name, O_RDONLY | O_CLOEXEC);
}

uint32_t xt_jail_enter(uint32_t parts, uint32_t needs, int32_t child, uint32_t uid, uint32_t gid, const char *paths,
                       int32_t *failure) {
  uint32_t done = 0;
  steps = (struct steps){-1, -1, parts & XT_JAIL_USER ? (int64_t)uid : -1, gid};
  int error = jail_empty_inherited();
  if (parts & XT_JAIL_FILES) steps.ruleset = jail_landlock_rules(paths);
  if (parts & XT_JAIL_NETWORK) steps.network = new_network();
  /* Where one thread is left out, as those of an emulator are, nobody can rely on what the others gave up. */
  int left_out = jail_on_every_thread(take_steps);
  if (!error) error = left_out;
  if (!error) {
    done |= XT_JAIL_PRIVILEGES;
    if (steps.ruleset >= 0) done |= XT_JAIL_FILES;
    if (steps.network >= 0) done |= XT_JAIL_NETWORK;
    if (steps.uid >= 0) done |= XT_JAIL_USER;
  }
  /* A thread that is late has yet to use them. */
  if (!left_out && steps.ruleset >= 0) close(steps.ruleset);
  if (!left_out && steps.network >= 0) close(steps.network);
  const struct filter_options filter = {CONTROL, needs, child, 1};
  if ((parts & XT_JAIL_CALLS) && jail_seccomp_filter(&filter) == 0) done |= XT_JAIL_CALLS;
  *failure = error || !(parts & XT_JAIL_FILES) || steps.ruleset >= 0 ? error : steps.ruleset;
  return done;
}

int32_t xt_jail_enter_plane(uint32_t parts, uint32_t needs, const char *paths) {
  const struct filter_options filter = {PLANE, needs, 0, 0};
  int ruleset = parts & XT_JAIL_FILES ? jail_landlock_rules(paths) : 0, error = 0;
  if (ruleset < 0) return ruleset;
  if (parts & XT_JAIL_FILES) {
    error = jail_landlock_restrict(ruleset);
    close(ruleset);
  }
  return error || !(parts & XT_JAIL_CALLS) ? error : jail_seccomp_filter(&filter);
}
