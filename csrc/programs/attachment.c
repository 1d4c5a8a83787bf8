/*
 * A program's attachment to the simulated host named by XENTOOL_SIM, as the domain XENTOOL_DOMID (default 0). A process
 * has only one, because a port of one handle may serve as the unmap-notify of another's mapping. A child of a fork
 * attaches anew.
 */
#define _GNU_SOURCE
#include "attachment.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *host_directory(void) {
  const char *dir = getenv("XENTOOL_SIM");
  return dir && *dir ? dir : NULL;
}

uint32_t programs_domid(void) {
  const char *text = getenv("XENTOOL_DOMID");
  return text && *text ? (uint32_t)strtoul(text, NULL, 10) : 0;
}

void *programs_platform(void) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  static void *platform;
  static pid_t owner;
  const char *dir = host_directory();
  if (!dir) {
    errno = ENODEV;
    return NULL;
  }
  pthread_mutex_lock(&lock);
  if (!platform || owner != getpid()) {
    platform = programs_handle(xt_sim_open(dir, programs_domid(), 0));
    owner = getpid();
  }
  void *attached = platform;
  pthread_mutex_unlock(&lock);
  return attached;
}

void *programs_handle(double result) {
  if (result >= 0) return (void *)(uintptr_t)result;
  errno = (int)-result;
  return NULL;
}

int programs_result(int32_t result) {
  if (result >= 0) return result;
  errno = -result;
  return -1;
}

/*
 * Each domain has its own xenstore socket. If XENSTORED_PATH names another domain's socket of this host, it was meant
 * for another program and is replaced.
 */
__attribute__((constructor)) static void name_xenstore(void) {
  const char *dir = host_directory(), *named = getenv("XENSTORED_PATH");
  char path[128];
  if (!dir || (named && *named && strncmp(named, dir, strlen(dir)) != 0)) return;
  if (snprintf(path, sizeof path, "%s/dom%u/xenstored", dir, programs_domid()) < (int)sizeof path)
    setenv("XENSTORED_PATH", path, 1);
}
