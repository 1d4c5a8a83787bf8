/* What the programs' libraries share: the process's one attachment to the simulated host, and errors as errno. */
#pragma once
#include "../xen/xen.h"

/* The process's platform, attached at the first call; NULL with errno. It lasts as long as the process. */
void *programs_platform(void);
/* The handle that a function of xen.h made; NULL with errno. */
void *programs_handle(double result);
/* `result` as it is, or -1 with errno. */
int programs_result(int32_t result);
