/* The reactor where io_uring is not allowed: operations are performed within the call, and poll(2) waits. */
#define _GNU_SOURCE
#include "clock.h"
#include "reactor.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <time.h>

_Static_assert(XT_POLL_IN == POLLIN && XT_POLL_OUT == POLLOUT, "events are poll's");
_Static_assert(XT_POLL_ERROR == POLLERR && XT_POLL_HANGUP == POLLHUP, "and so are failures");

int32_t poll_wait(struct reactor *reactor, uint32_t wait, int32_t timeout_us) {
  int64_t deadline = timeout_us < 0 ? -1 : xt_system_us() + timeout_us;
  for (int first = 1;; first = 0) {
    int enough = reactor->ready_count >= wait;
    if (!first && enough) return 0;
    for (uint32_t i = 0; i < reactor->watch_count; i++) {
      const struct watch *watch = &reactor->watches[i];
      /* poll(2) ignores a negative descriptor. */
      int fd = watch->events ? watch->fd : -1;
      reactor->polled[i] = (struct pollfd){.fd = fd, .events = (short)watch->events};
    }
    int64_t left = enough ? 0 : deadline < 0 ? -1 : deadline - xt_system_us();
    if (!first && deadline >= 0 && left <= 0) return 0;
    if (deadline >= 0 && left < 0) left = 0;
    struct timespec time = {.tv_sec = left / 1000000, .tv_nsec = left % 1000000 * 1000};
    int seen = ppoll(reactor->polled, reactor->watch_count, left < 0 ? NULL : &time, NULL);
    if (seen < 0) return errno == EINTR ? 0 : -errno;
    for (uint32_t i = 0; seen > 0 && i < reactor->watch_count; i++)
      if (reactor->polled[i].revents) reactor_finish(reactor, reactor->watches[i].tag, reactor->polled[i].revents);
  }
}
