/*
 * poke_threads PID SIGNAL [NAME]: sends a signal to every thread of a process, or to those called NAME. io_uring's own
 * threads are the kernel's, and run no handler.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Whether the first `length` characters of the thread's name are those of `wanted`. */
static int is_called(const char *pid, const char *thread, const char *wanted, size_t length) {
  char path[300], name[32] = "";
  snprintf(path, sizeof path, "/proc/%s/task/%s/comm", pid, thread);
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  if (!fgets(name, sizeof name, file)) *name = 0;
  fclose(file);
  name[strcspn(name, "\n")] = 0;
  return strncmp(name, wanted, length) == 0;
}

int main(int argc, char **argv) {
  char path[64];
  int poked = 0;
  if (argc < 3) return 2;
  snprintf(path, sizeof path, "/proc/%s/task", argv[1]);
  DIR *threads = opendir(path);
  if (!threads) return 1;
  for (const struct dirent *entry; (entry = readdir(threads));) {
    if (entry->d_name[0] == '.') continue;
    if (is_called(argv[1], entry->d_name, "iou-", 4)) continue;
    if (argc > 3 && !is_called(argv[1], entry->d_name, argv[3], sizeof path)) continue;
    poked += syscall(SYS_tgkill, atoi(argv[1]), atoi(entry->d_name), atoi(argv[2])) == 0;
  }
  closedir(threads);
  printf("%d\n", poked);
  return 0;
}
