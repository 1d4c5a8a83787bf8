/* The names in a directory where somebody else may have put any number of them. */
#define _GNU_SOURCE
#include "xentool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int is_itself_or_parent(const char *name) { return strcmp(name, ".") == 0 || strcmp(name, "..") == 0; }

int32_t xt_directory_names(const char *path, char *names, uint32_t size) {
  uint32_t used = 0;
  int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return -errno;
  DIR *directory = fdopendir(fd);
  if (!directory) {
    int error = -errno;
    close(fd);
    return error;
  }
  for (const struct dirent *entry; (entry = readdir(directory));) {
    size_t length = strlen(entry->d_name) + 1;
    if (is_itself_or_parent(entry->d_name)) continue;
    if (length > size - used) break;
    memcpy(names + used, entry->d_name, length);
    used += (uint32_t)length;
  }
  closedir(directory);
  return (int32_t)used;
}
