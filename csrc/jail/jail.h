/*
 * A jail for a process that serves a guest, in four parts that do not depend on each other: no privileges, no network,
 * a few directories instead of all files (Landlock), a few calls instead of all (seccomp). xentool.h has what others
 * call. Calls go one way: jail.c -> threads.c, privileges.c, landlock.c, seccomp.c.
 */
#ifndef XENTOOL_JAIL_H
#define XENTOOL_JAIL_H

#include "../xentool.h"

#include <stddef.h>
#include <sys/syscall.h>

/* Newer than the headers of some systems; the same number on every processor. */
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif

/* ---- threads.c ---- */

/*
 * Runs `work` on every thread of this process: also on those that are started meanwhile, by threads that have done it
 * or not. It may only make system calls, and may come when this has returned, on a thread that is late. 0, or -errno if
 * some thread has not done it.
 */
int jail_on_every_thread(int (*work)(void));

/* ---- privileges.c ---- */

/*
 * Neither this thread nor what it executes ever gains a privilege again. 0 or -errno, as all that follow; and 0 where
 * the thread has inherited it.
 */
int jail_no_new_privileges(void);
int jail_drop_capabilities(void);
/* This thread is that user from now on, in that group and no other. */
int jail_become(uint32_t uid, uint32_t gid);
/* Whether this thread has the privilege for it. */
int jail_may_make_namespaces(void);
int jail_may_become_others(void);
/* Moves this thread into a network without devices, and into one of others' (`fd`). */
int jail_leave_network(void);
int jail_join_network(int fd);
/*
 * Descriptors that this process was started with by accident, all but the first three that an exec would pass on, have
 * nothing behind them any more: they read as an empty pipe.
 */
int jail_empty_inherited(void);

/* ---- landlock.c ---- */

/* The version of Landlock's interface; 0 without Landlock. */
int jail_landlock_version(void);
/* A ruleset's descriptor, or -errno. */
int jail_landlock_rules(const char *paths);
int jail_landlock_restrict(int ruleset);

/* ---- seccomp.c ---- */

enum { CONTROL = XT_JAIL_CONTROL, PLANE = XT_JAIL_PLANE, BOTH = CONTROL | PLANE };

struct filter_options {
  uint32_t role, needs;
  int32_t child;    /* the one other process that may be sent signals; 0: none */
  int every_thread; /* of this process; otherwise the calling thread alone. Either way all that they start */
};

int jail_seccomp_is_there(void);
int jail_seccomp_filter(const struct filter_options *options);

#endif
