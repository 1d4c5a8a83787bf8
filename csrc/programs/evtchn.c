/* libxenevtchn on a simulated host. Descriptors block, like the device's: xenevtchn_pending waits. */
#define _GNU_SOURCE
#include "attachment.h"
#include "names.h"

#include <errno.h>
#include <unistd.h>

enum { NO_CLOEXEC = 1, VIRQ_DOM_EXC = 3 };

xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags) {
  (void)logger;
  if (flags & ~(unsigned)NO_CLOEXEC) return programs_handle(-EINVAL);
  void *platform = programs_platform();
  return platform ? programs_handle(xt_evtchn_open(platform, flags & NO_CLOEXEC ? XT_EVTCHN_KEEP : 0)) : NULL;
}

xenevtchn_handle *xenevtchn_fdopen(struct xentoollog_logger *logger, int fd, unsigned open_flags) {
  (void)logger, (void)fd, (void)open_flags;
  return programs_handle(-ENOSYS);
}

int xenevtchn_close(xenevtchn_handle *xce) { return xce ? programs_result(xt_evtchn_close(xce)) : 0; }
int xenevtchn_fd(xenevtchn_handle *xce) { return xt_evtchn_fd(xce); }
int xenevtchn_notify(xenevtchn_handle *xce, uint32_t port) { return programs_result(xt_evtchn_notify(xce, port)); }

int xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid) {
  return programs_result(xt_evtchn_bind_unbound(xce, domid));
}

int xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid, uint32_t remote_port) {
  return programs_result(xt_evtchn_bind_interdomain(xce, domid, remote_port));
}

/* The servers of xenstore need VIRQ_DOM_EXC to start. Here it is a port to which nobody sends an event. */
int xenevtchn_bind_virq(xenevtchn_handle *xce, unsigned int virq) {
  if (virq != VIRQ_DOM_EXC) return programs_result(-ENOSYS);
  return programs_result(xt_evtchn_bind_unbound(xce, programs_domid()));
}

int xenevtchn_unbind(xenevtchn_handle *xce, uint32_t port) { return programs_result(xt_evtchn_unbind(xce, port)); }
int xenevtchn_unmask(xenevtchn_handle *xce, uint32_t port) { return programs_result(xt_evtchn_unmask(xce, port)); }

int xenevtchn_restrict(xenevtchn_handle *xce, uint16_t domid) {
  return programs_result(xt_evtchn_restrict(xce, domid));
}

/*
 * As in the real library, it is an error if a signal arrives, or if the program made the descriptor non-blocking and
 * there is no event.
 */
int xenevtchn_pending(xenevtchn_handle *xce) {
  uint32_t port;
  return read(xt_evtchn_fd(xce), &port, sizeof port) == (ssize_t)sizeof port ? (int)port : -1;
}
