/*
 * A socket's path and its listening. Who waits for the path connects at once, so it must not be there before
 * anybody listens: the linker puts a `listen` of this test in between (CMakeLists.txt), which looks.
 */
#define _GNU_SOURCE
#include "check.h"
#include "xentool.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char path[64];
static int was_there, status;

int __real_listen(int fd, int backlog);
int __wrap_listen(int fd, int backlog);
int __wrap_listen(int fd, int backlog) {
  was_there = access(path, F_OK) == 0;
  errno = status;
  return status ? -1 : __real_listen(fd, backlog);
}

static void connect_once(int32_t listener) {
  int32_t client = xt_stream_connect(path, -1), server = xt_stream_accept(listener);
  CHECK(client >= 0 && server >= 0);
  CHECK_EQUAL(xt_stream_is_sending(client), 0);
  close(client);
  close(server);
}

static int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  CHECK_EQUAL(getsockopt(fd, level, name, &value, &size), 0);
  return value;
}

/* By TCP: who is gone is noticed at both ends, and who only reads slowly is waited for if that is wanted. */
static void connect_by_tcp(void) {
  int32_t listener = xt_stream_listen("127.0.0.1", 0);
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  CHECK_EQUAL(getsockname(listener, (struct sockaddr *)&at, &size), 0);
  int32_t client = xt_stream_connect("127.0.0.1", ntohs(at.sin_port)), server = xt_stream_accept(listener);
  CHECK(client >= 0 && server >= 0);
  CHECK_EQUAL(option(client, SOL_SOCKET, SO_KEEPALIVE), 1);
  CHECK_EQUAL(option(server, SOL_SOCKET, SO_KEEPALIVE), 1);
  CHECK(option(client, IPPROTO_TCP, TCP_USER_TIMEOUT) > 0);
  CHECK_EQUAL(option(server, IPPROTO_TCP, TCP_USER_TIMEOUT), 0);
  xt_stream_await_reader(client);
  CHECK_EQUAL(option(client, IPPROTO_TCP, TCP_USER_TIMEOUT), 0);

  /* What its reader has no room for has not arrived. */
  char bytes[4096] = {0};
  CHECK_EQUAL(xt_stream_is_sending(client), 0);
  while (send(client, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {}
  CHECK_EQUAL(xt_stream_is_sending(client), 1);
  close(server);
  close(client);
  close(listener);
}

int main(void) {
  char directory[] = "/tmp/xentool-test-stream-XXXXXX", too_long[200];
  CHECK(mkdtemp(directory) != NULL);
  snprintf(path, sizeof path, "%s/socket", directory);

  int32_t listener = xt_stream_listen(path, -1);
  CHECK(listener >= 0);
  CHECK(!was_there);
  connect_once(listener);

  /* It is taken, and stays whose it is. */
  CHECK_EQUAL(xt_stream_listen(path, -1), -EADDRINUSE);
  connect_once(listener);
  CHECK_EQUAL(unlink(path), 0);

  connect_by_tcp();

  /* What cannot listen leaves nothing. */
  status = EIO;
  CHECK_EQUAL(xt_stream_listen(path, -1), -EIO);
  close(listener);

  memset(too_long, 'a', sizeof too_long);
  too_long[sizeof too_long - 1] = 0;
  CHECK_EQUAL(xt_stream_listen(too_long, -1), -ENAMETOOLONG);
  CHECK_EQUAL(xt_stream_connect(too_long, -1), -ENAMETOOLONG);
  CHECK_EQUAL(xt_stream_connect("no address", 1), -EINVAL);
  CHECK_EQUAL(rmdir(directory), 0);
  return 0;
}
