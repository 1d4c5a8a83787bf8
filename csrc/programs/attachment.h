/* Shared by the programs' libraries: the process's one attachment to the simulated host, and errors as errno. */
#pragma once
#include "../xen/xen.h"

/* The process's platform, attached at the first call; NULL with errno on error. It lasts as long as the process. */
void *programs_platform(void);
/* The domain that the program runs in. */
uint32_t programs_domid(void);
/* The handle that a function of xen.h returned; NULL with errno on error. */
void *programs_handle(double result);
/* `result` unchanged, or -1 with errno. */
int programs_result(int32_t result);
