/* Creates, maps and locks the files of the simulated platform. */
#define _GNU_SOURCE
#include "../reserve.h"
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const uint64_t HOST_MAGIC = 0x316d69736c6f6f74;   /* "toolsim1" */
static const uint64_t DOMAIN_MAGIC = 0x316d6f646c6f6f74; /* "tooldom1" */
enum { LAYOUT_VERSION = 2, LIMIT_MAX = 1 << 20, LOCK_STEP_NS = 20000000 };

/* ---- layout ---- */

struct layout {
  uint64_t entries, records, tracks, ports, handles, frames, size;
};

static uint64_t place(uint64_t *at, uint64_t count, uint64_t size) {
  uint64_t offset = *at;
  *at += (count * size + PAGE - 1) / PAGE * PAGE;
  return offset;
}

static struct layout layout_of(const struct xt_sim_limits *limits) {
  struct layout layout;
  uint64_t at = PAGE;
  layout.entries = place(&at, limits->grant_entries, sizeof(struct grant_entry));
  layout.records = place(&at, limits->grant_entries, sizeof(struct grant_record));
  layout.tracks = place(&at, limits->maptrack, sizeof(struct track));
  layout.ports = place(&at, limits->ports, sizeof(struct port));
  layout.handles = place(&at, limits->handles, sizeof(struct handle));
  layout.frames = place(&at, limits->grant_entries, PAGE);
  layout.size = at;
  return layout;
}

static int limits_are_sane(const struct xt_sim_limits *limits) {
  return limits->grant_entries > XT_SIM_RESERVED_GREFS && limits->grant_entries <= LIMIT_MAX &&
         limits->maptrack > 0 && limits->maptrack <= LIMIT_MAX && limits->ports > 1 &&
         limits->ports <= LIMIT_MAX && limits->handles > 0 && limits->handles <= LIMIT_MAX &&
         limits->slots > 1 && limits->slots <= LIMIT_MAX;
}

static uint64_t host_bytes(const struct xt_sim_limits *limits) {
  return sizeof(struct host_file) + (uint64_t)limits->slots * sizeof(struct slot);
}

/* ---- locks ---- */

static int mutex_init(pthread_mutex_t *mutex) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  int error = pthread_mutex_init(mutex, &attributes);
  pthread_mutexattr_destroy(&attributes);
  return -error;
}

/*
 * Waits in steps. A wake-up can go to a waiter that is being killed; if a third process has taken the lock meanwhile,
 * nothing tells the others that it is free again, so they must look for themselves. The steps use the wall clock
 * because older C libraries offer no other here; setting that clock back makes one step longer.
 */
static int wait_for_mutex(pthread_mutex_t *mutex) {
  struct timespec until;
  int error;
  do {
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOCK_STEP_NS;
    if (until.tv_nsec >= 1000000000) {
      until.tv_sec++;
      until.tv_nsec -= 1000000000;
    }
    error = pthread_mutex_timedlock(mutex, &until);
  } while (error == ETIMEDOUT);
  return error;
}

int sim_mutex_lock(pthread_mutex_t *mutex) {
  int error = pthread_mutex_trylock(mutex);
  if (error == EBUSY) error = wait_for_mutex(mutex);
  if (error != EOWNERDEAD) return 0;
  pthread_mutex_consistent(mutex);
  return 1;
}

/* ---- creating files ---- */

int sim_open_dir(const char *dir) { return open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC); }

uint32_t sim_mode(int dir_fd, uint32_t alone, uint32_t shared) {
  struct stat status;
  /* As a call of the kernel, because the function is newer than the C library that Bun needs (old_libc.h). */
  return syscall(SYS_fstat, dir_fd, &status) == 0 && status.st_mode & S_IXGRP ? shared : alone;
}

/* Memory for the first `used` bytes is allocated immediately; the rest is a hole. */
static void *create_file(int dir_fd, const char *name, uint64_t size, uint64_t used) {
  int fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return MAP_FAILED;
  void *memory = MAP_FAILED;
  int error = fchmod(fd, sim_mode(dir_fd, 0600, 0666)) || ftruncate(fd, (off_t)size) ? -errno : 0;
  if (error == 0) error = xt_reserve(fd, 0, used);
  if (error == 0) memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  error = error ? -error : errno;
  if (memory == MAP_FAILED) unlinkat(dir_fd, name, 0); /* only its creator removes it */
  close(fd);
  errno = error;
  return memory;
}

int32_t xt_sim_host_create(const char *dir, const struct xt_sim_limits *limits) {
  if (!limits_are_sane(limits)) return -EINVAL;
  int dir_fd = sim_open_dir(dir);
  if (dir_fd < 0) return -errno;
  uint64_t size = host_bytes(limits);
  struct host_file *host = create_file(dir_fd, "host", size, size);
  int error = host == MAP_FAILED ? -errno : 0;
  close(dir_fd);
  if (error) return error;
  host->version = LAYOUT_VERSION;
  host->limits = *limits;
  mutex_init(&host->lock);
  __atomic_store_n(&host->magic, HOST_MAGIC, __ATOMIC_RELEASE);
  munmap(host, size);
  return 0;
}

/* Prepares a new domain as the toolstack does: a xenstore page and port, both for domain 0. */
static int32_t prepare_store(uint8_t *memory, const struct layout *layout) {
  struct domain_header *header = (struct domain_header *)memory;
  struct grant_entry *entry = (struct grant_entry *)(memory + layout->entries) + XT_SIM_STORE_GREF;
  struct grant_record *record = (struct grant_record *)(memory + layout->records) + XT_SIM_STORE_GREF;
  struct port *port = (struct port *)(memory + layout->ports) + 1;
  *record = (struct grant_record){.state = GRANT_SHARED, .slot = KERNEL_SLOT, .clear_byte = -1};
  *entry = (struct grant_entry){.access = GTF_PERMIT_ACCESS, .frame = XT_SIM_STORE_GREF};
  *port = (struct port){.state = PORT_UNBOUND, .slot = KERNEL_SLOT, .masked = 1, .kernel = 1};
  header->store_port = 1;
  return 1;
}

static int32_t fill_domain(int dir_fd, const char *name, uint32_t domid, const struct xt_sim_limits *limits) {
  struct layout layout = layout_of(limits);
  uint8_t *memory = create_file(dir_fd, name, layout.size, layout.frames + (XT_SIM_STORE_GREF + 1) * PAGE);
  if (memory == MAP_FAILED) return -errno;
  struct domain_header *header = (struct domain_header *)memory;
  header->version = LAYOUT_VERSION;
  header->domid = domid;
  header->limits = *limits;
  header->gref_low = XT_SIM_RESERVED_GREFS;
  header->gref_high = XT_SIM_RESERVED_GREFS;
  header->next_handle = 1;
  mutex_init(&header->grant_lock);
  mutex_init(&header->evtchn_lock);
  int32_t port = prepare_store(memory, &layout);
  __atomic_store_n(&header->magic, DOMAIN_MAGIC, __ATOMIC_RELEASE);
  munmap(memory, layout.size);
  return port;
}

struct host_file *sim_map_host(int dir_fd, uint64_t *size) {
  int fd = openat(dir_fd, "host", O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return MAP_FAILED;
  struct host_file *host = MAP_FAILED;
  off_t length = lseek(fd, 0, SEEK_END);
  errno = EPROTO;
  if (length >= (off_t)sizeof *host) {
    *size = (uint64_t)length;
    host = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  int error = errno;
  close(fd);
  errno = error;
  if (host == MAP_FAILED) return host;
  if (host->magic == HOST_MAGIC && host->version == LAYOUT_VERSION && limits_are_sane(&host->limits) &&
      host_bytes(&host->limits) <= *size)
    return host;
  munmap(host, *size);
  errno = EPROTO;
  return MAP_FAILED;
}

int32_t xt_sim_domain_create(const char *dir, uint32_t domid) {
  char name[64], file[80];
  uint64_t host_size;
  if (domid >= DOMID_FIRST_RESERVED) return -EINVAL;
  int dir_fd = sim_open_dir(dir);
  if (dir_fd < 0) return -errno;
  struct host_file *host = sim_map_host(dir_fd, &host_size);
  if (host == MAP_FAILED) {
    int error = -errno;
    close(dir_fd);
    return error;
  }
  snprintf(name, sizeof name, "dom%u", domid);
  snprintf(file, sizeof file, "%s/memory", name);
  int32_t result = mkdirat(dir_fd, name, 0700) ? -errno : 0;
  if (result == 0) fchmodat(dir_fd, name, sim_mode(dir_fd, 0700, 01777), 0);
  if (result == 0) {
    result = fill_domain(dir_fd, file, domid, &host->limits);
    if (result < 0) {
      unlinkat(dir_fd, file, 0);
      unlinkat(dir_fd, name, AT_REMOVEDIR);
    }
  }
  munmap(host, host_size);
  close(dir_fd);
  return result;
}

/* ---- mapping a domain's file ---- */

struct domain *sim_domain_open(int dir_fd, uint32_t domid) {
  char file[80];
  snprintf(file, sizeof file, "dom%u/memory", domid);
  int fd = openat(dir_fd, file, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) {
    if (errno == ENOENT) errno = ESRCH;
    return NULL;
  }
  struct domain *domain = calloc(1, sizeof *domain);
  uint8_t *memory = MAP_FAILED;
  off_t length = lseek(fd, 0, SEEK_END);
  errno = domain ? ESRCH : ENOMEM; /* a file still being created is not a domain yet */
  if (domain && length >= PAGE)
    memory = mmap(NULL, (size_t)length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) goto fail;
  struct domain_header *header = (struct domain_header *)memory;
  if (__atomic_load_n(&header->magic, __ATOMIC_ACQUIRE) != DOMAIN_MAGIC || header->version != LAYOUT_VERSION ||
      !limits_are_sane(&header->limits))
    goto unmap;
  struct layout layout = layout_of(&header->limits);
  if (layout.size > (uint64_t)length) goto unmap;
  *domain = (struct domain){
      .domid = domid,
      .references = 1,
      .fd = fd,
      .size = (uint64_t)length,
      .frames_offset = layout.frames,
      .header = header,
      .entries = (struct grant_entry *)(memory + layout.entries),
      .records = (struct grant_record *)(memory + layout.records),
      .tracks = (struct track *)(memory + layout.tracks),
      .ports = (struct port *)(memory + layout.ports),
      .handles = (struct handle *)(memory + layout.handles),
      .frames = memory + layout.frames,
  };
  return domain;
unmap:
  munmap(memory, (size_t)length);
  errno = ESRCH;
fail:;
  int error = errno;
  free(domain);
  close(fd);
  errno = error;
  return NULL;
}

void sim_domain_hold(struct domain *domain) { __atomic_add_fetch(&domain->references, 1, __ATOMIC_RELAXED); }

void sim_domain_put(struct domain *domain) {
  if (!domain || __atomic_sub_fetch(&domain->references, 1, __ATOMIC_ACQ_REL) > 0) return;
  munmap(domain->header, domain->size);
  close(domain->fd);
  free(domain);
}

int sim_domain_is_dead(const struct domain *domain) {
  return __atomic_load_n(&domain->header->dead, __ATOMIC_ACQUIRE) != 0;
}
