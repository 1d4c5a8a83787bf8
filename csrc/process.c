/* What a process has the kernel do about itself. */
#define _GNU_SOURCE
#include "xentool.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>

int32_t xt_process_end_with_parent(void) { return prctl(PR_SET_PDEATHSIG, SIGKILL) ? -errno : 0; }
