/*
 * What the data plane rests on, and what each call costs: event channels through io_uring, grant copies of
 * many sizes, notifications. Run in dom0, by itself: it grants pages to its own domain and binds event channels
 * to itself. Prints one fact a line: "NAME VALUE"; exits 1 when one of those that must hold does not.
 *
 * linux/io_uring.h, xen/evtchn.h and xen/gntdev.h say what the structures and the numbers mean.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* what Linux's headers of Xen's devices take for granted */
typedef uint16_t domid_t;
typedef uint32_t grant_ref_t;
enum { GNTCOPY_source_gref = 1, GNTCOPY_dest_gref = 2 };
#include <xen/evtchn.h>
#include <xen/gntalloc.h>
#include <xen/gntdev.h>

enum { PAGE = 4096, RING_ENTRIES = 64, MAX_PAGES = 512 };

static int failures;

static void die(const char *what)
{
    printf("FAIL: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void expect(const char *name, int holds, long value)
{
    printf("%s %ld%s\n", name, value, holds ? "" : "   NOT AS EXPECTED");
    failures += !holds;
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* ---- io_uring without a library ---- */

struct uring {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
};

static int uring_open(struct uring *u)
{
    struct io_uring_params p = { 0 };
    u->fd = (int)syscall(SYS_io_uring_setup, RING_ENTRIES, &p);
    if (u->fd < 0)
        return -errno;
    size_t size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *ring = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, u->fd, IORING_OFF_SQ_RING);
    u->sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, u->fd,
                   IORING_OFF_SQES);
    if (ring == MAP_FAILED || u->sqes == MAP_FAILED)
        return -errno;
    u->sq_tail = (unsigned *)(ring + p.sq_off.tail);
    u->sq_mask = (unsigned *)(ring + p.sq_off.ring_mask);
    u->sq_array = (unsigned *)(ring + p.sq_off.array);
    u->cq_head = (unsigned *)(ring + p.cq_off.head);
    u->cq_tail = (unsigned *)(ring + p.cq_off.tail);
    u->cq_mask = (unsigned *)(ring + p.cq_off.ring_mask);
    u->cqes = (struct io_uring_cqe *)(ring + p.cq_off.cqes);
    return (int)p.features;
}

static struct io_uring_sqe *uring_sqe(struct uring *u, int op, int fd)
{
    unsigned tail = *u->sq_tail, slot = tail & *u->sq_mask;
    struct io_uring_sqe *sqe = &u->sqes[slot];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)op;
    sqe->fd = fd;
    u->sq_array[slot] = slot;
    __atomic_store_n(u->sq_tail, tail + 1, __ATOMIC_RELEASE);
    return sqe;
}

static int uring_enter(struct uring *u, unsigned submit, unsigned wait)
{
    return (int)syscall(SYS_io_uring_enter, u->fd, submit, wait, wait ? IORING_ENTER_GETEVENTS : 0, NULL, 0);
}

/* The next completion's result, or -ETIME when there is none within a second. */
static int uring_result(struct uring *u)
{
    for (int i = 0; i < 1000; i++) {
        unsigned head = *u->cq_head;
        if (head != __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE)) {
            int result = u->cqes[head & *u->cq_mask].res;
            __atomic_store_n(u->cq_head, head + 1, __ATOMIC_RELEASE);
            return result;
        }
        uring_enter(u, 0, 0);
        usleep(1000);
    }
    return -ETIME;
}

/* ---- event channels: two ends, both ours ---- */

static int bind_pair(int fd, unsigned *near, unsigned *far)
{
    struct ioctl_evtchn_bind_unbound_port unbound = { .remote_domain = 0 };
    int port = ioctl(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &unbound);
    if (port < 0)
        return -1;
    struct ioctl_evtchn_bind_interdomain inter = { .remote_domain = 0, .remote_port = (unsigned)port };
    int other = ioctl(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, &inter);
    *near = (unsigned)port;
    *far = (unsigned)other;
    return other;
}

static void notify(int fd, unsigned port)
{
    struct ioctl_evtchn_notify n = { .port = port };
    if (ioctl(fd, IOCTL_EVTCHN_NOTIFY, &n) < 0)
        die("notify");
}

/* Takes and unmasks everything that is pending. */
static int drain(int fd)
{
    unsigned ports[16];
    int total = 0;
    ssize_t n;
    while ((n = read(fd, ports, sizeof ports)) > 0) {
        total += (int)(n / 4);
        if (write(fd, ports, (size_t)n) != n)
            die("unmask");
    }
    return total;
}

static void event_channel_facts(struct uring *u)
{
    int fd = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    unsigned near = 0, far = 0, port = 0;
    if (fd < 0)
        die("/dev/xen/evtchn");
    if (bind_pair(fd, &near, &far) < 0)
        die("bind");
    usleep(10000);
    expect("evtchn-events-after-bind", 1, drain(fd));

    /* POLL_ADD, armed before the event */
    uring_sqe(u, IORING_OP_POLL_ADD, fd)->poll32_events = POLLIN;
    expect("uring-poll-submit", uring_enter(u, 1, 0) == 1, 1);
    usleep(10000);
    expect("uring-poll-completions-before-event", *u->cq_head == *u->cq_tail, *u->cq_tail - *u->cq_head);
    notify(fd, far);
    int events = uring_result(u);
    expect("uring-poll-events", events > 0 && (events & POLLIN), events);
    expect("evtchn-pending-after-poll", drain(fd) == 1, 1);

    /* multishot poll reports each new event once armed */
    struct io_uring_sqe *multi = uring_sqe(u, IORING_OP_POLL_ADD, fd);
    multi->poll32_events = POLLIN;
    multi->len = IORING_POLL_ADD_MULTI;
    multi->user_data = 77;
    uring_enter(u, 1, 0);
    int shots = 0;
    for (int i = 0; i < 5; i++) {
        notify(fd, far);
        shots += uring_result(u) > 0;
        drain(fd);
    }
    expect("uring-poll-multishot-of-5", shots == 5, shots);
    uring_sqe(u, IORING_OP_POLL_REMOVE, -1)->addr = 77;
    uring_enter(u, 1, 0);
    uring_result(u);
    uring_result(u);

    /* READ, armed before the event, on a non-blocking and on a blocking descriptor */
    struct io_uring_sqe *r = uring_sqe(u, IORING_OP_READ, fd);
    r->addr = (uintptr_t)&port;
    r->len = 4;
    r->off = (uint64_t)-1;
    uring_enter(u, 1, 0);
    int early = uring_result(u);
    printf("uring-read-nonblocking-before-event %d\n", early);
    notify(fd, far);
    usleep(10000);
    printf("uring-read-nonblocking-after-event %d\n", early == -ETIME ? uring_result(u) : 0);
    if (port != 0 && write(fd, &port, 4) != 4)
        die("unmask");
    drain(fd);
    int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    r = uring_sqe(u, IORING_OP_READ, fd);
    r->addr = (uintptr_t)&port;
    r->len = 4;
    r->off = (uint64_t)-1;
    uring_enter(u, 1, 0);
    early = uring_result(u);
    printf("uring-read-blocking-before-event %d\n", early);
    notify(fd, far);
    printf("uring-read-blocking-after-event %d\n", early == -ETIME ? uring_result(u) : 0);
    fcntl(fd, F_SETFL, flags);
    if (write(fd, &port, 4) != 4)
        die("unmask");
    drain(fd);

    /* a delivered port stays silent until it is written back */
    notify(fd, far);
    usleep(10000);
    expect("evtchn-first-read", read(fd, &port, 4) == 4, port);
    notify(fd, far);
    usleep(10000);
    struct pollfd p = { .fd = fd, .events = POLLIN };
    expect("evtchn-poll-while-masked", poll(&p, 1, 0) == 0, p.revents);
    if (write(fd, &port, 4) != 4)
        die("unmask");
    usleep(10000);
    expect("evtchn-poll-after-unmask", poll(&p, 1, 0) == 1, p.revents);
    drain(fd);

    enum { ROUNDS = 2000 };
    double t = now_us();
    for (int i = 0; i < ROUNDS; i++)
        notify(fd, far);
    printf("cost-notify-pending-us %.2f\n", (now_us() - t) / ROUNDS);
    drain(fd);
    t = now_us();
    for (int i = 0; i < ROUNDS; i++) {
        notify(fd, far);
        while (drain(fd) == 0)
            ;
    }
    printf("cost-notify-read-unmask-us %.2f\n", (now_us() - t) / ROUNDS);
    t = now_us();
    for (int i = 0; i < ROUNDS; i++)
        poll(&p, 1, 0);
    printf("cost-poll-us %.2f\n", (now_us() - t) / ROUNDS);
    t = now_us();
    for (int i = 0; i < ROUNDS; i++)
        if (read(fd, &port, 4) >= 0)
            break;
    printf("cost-read-eagain-us %.2f\n", (now_us() - t) / ROUNDS);
    close(fd);
}

/* ---- io_uring's own costs ---- */

static void uring_costs(struct uring *u)
{
    enum { ROUNDS = 2000 };
    double t = now_us();
    for (int i = 0; i < ROUNDS; i++)
        syscall(SYS_getppid);
    printf("cost-getppid-us %.2f\n", (now_us() - t) / ROUNDS);
    t = now_us();
    for (int i = 0; i < ROUNDS; i++)
        uring_enter(u, 0, 0);
    printf("cost-enter-empty-us %.2f\n", (now_us() - t) / ROUNDS);

    char path[] = "/tmp/xen-costs.XXXXXX";
    int file = mkstemp(path);
    char *buffer = aligned_alloc(PAGE, PAGE);
    memset(buffer, 1, PAGE);
    for (int i = 0; i < RING_ENTRIES; i++)
        if (pwrite(file, buffer, PAGE, i * PAGE) != PAGE)
            die("pwrite");
    t = now_us();
    for (int i = 0; i < ROUNDS; i++)
        if (pread(file, buffer, PAGE, 0) != PAGE)
            die("pread");
    printf("cost-pread-4k-tmpfs-us %.2f\n", (now_us() - t) / ROUNDS);
    for (int batch = 1; batch <= RING_ENTRIES; batch *= 8) {
        int rounds = ROUNDS / batch;
        t = now_us();
        for (int i = 0; i < rounds; i++) {
            for (int k = 0; k < batch; k++) {
                struct io_uring_sqe *s = uring_sqe(u, IORING_OP_READ, file);
                s->addr = (uintptr_t)buffer;
                s->len = PAGE;
                s->off = (uint64_t)k * PAGE;
            }
            uring_enter(u, (unsigned)batch, (unsigned)batch);
            for (int k = 0; k < batch; k++)
                if (uring_result(u) != PAGE)
                    die("uring read");
        }
        printf("cost-uring-read-4k-tmpfs-batch-%d-us %.2f\n", batch, (now_us() - t) / (rounds * batch));
    }
    unlink(path);
    close(file);
    free(buffer);
}

/* ---- grant copies ---- */

static void grant_copy_facts(void)
{
    int alloc = open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC), dev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
    if (alloc < 0 || dev < 0)
        die("/dev/xen/gnt*");
    struct ioctl_gntalloc_alloc_gref *a = calloc(1, sizeof *a + MAX_PAGES * 4);
    a->domid = 0;
    a->flags = GNTALLOC_FLAG_WRITABLE;
    a->count = MAX_PAGES;
    if (ioctl(alloc, IOCTL_GNTALLOC_ALLOC_GREF, a) < 0)
        die("gntalloc");
    uint32_t *refs = a->gref_ids;
    char *granted = mmap(NULL, (size_t)MAX_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, alloc, (off_t)a->index);
    char *local = aligned_alloc(PAGE, (size_t)MAX_PAGES * PAGE);
    if (granted == MAP_FAILED)
        die("mmap gntalloc");
    for (int i = 0; i < MAX_PAGES; i++)
        memset(granted + (size_t)i * PAGE, i, PAGE);
    memset(local, 0xee, (size_t)MAX_PAGES * PAGE);

    static struct gntdev_grant_copy_segment segs[MAX_PAGES];
    struct ioctl_gntdev_grant_copy copy = { .count = 1, .segments = segs };
    for (int write = 0; write < 2; write++) {
        for (int count = 1; count <= MAX_PAGES; count *= 8) {
            int rounds = count == 1 ? 1000 : 4000 / count;
            double t = now_us();
            for (int r = 0; r < rounds; r++) {
                for (int i = 0; i < count; i++) {
                    struct gntdev_grant_copy_segment *s = &segs[i];
                    memset(s, 0, sizeof *s);
                    s->len = PAGE;
                    if (write) {
                        s->source.virt = local + (size_t)i * PAGE;
                        s->dest.foreign.ref = refs[i];
                        s->flags = GNTCOPY_dest_gref;
                    } else {
                        s->source.foreign.ref = refs[i];
                        s->dest.virt = local + (size_t)i * PAGE;
                        s->flags = GNTCOPY_source_gref;
                    }
                }
                copy.count = (unsigned)count;
                if (ioctl(dev, IOCTL_GNTDEV_GRANT_COPY, &copy) < 0)
                    die("grant copy");
            }
            double us = (now_us() - t) / rounds;
            printf("cost-grant-copy-%s-%d-pages-us %.2f (%.2f a page)\n", write ? "to" : "from", count, us, us / count);
        }
        int right = 1;
        for (int i = 0; i < 64; i++)
            right &= segs[i].status == 0 && (unsigned char)local[(size_t)i * PAGE + 7] == i;
        expect(write ? "grant-copy-to" : "grant-copy-from", right, 1);
    }

    memset(segs, 0, sizeof segs);
    for (int i = 0; i < 2; i++) {
        segs[i].source.foreign.ref = i ? 0x3fff : refs[i];
        segs[i].dest.virt = local;
        segs[i].len = 512;
        segs[i].flags = GNTCOPY_source_gref;
        segs[i].status = 99;
    }
    copy.count = 2;
    int rc = ioctl(dev, IOCTL_GNTDEV_GRANT_COPY, &copy);
    expect("grant-copy-bad-ref-ioctl", rc == 0, rc);
    expect("grant-copy-bad-ref-good-segment-status", segs[0].status == 0, segs[0].status);
    expect("grant-copy-bad-ref-status", segs[1].status < 0, segs[1].status);
    segs[0].source.foreign.offset = 4000;
    copy.count = 1;
    rc = ioctl(dev, IOCTL_GNTDEV_GRANT_COPY, &copy);
    expect("grant-copy-across-page-ioctl-errno", rc < 0 && errno == EINVAL, errno);

    munmap(granted, (size_t)MAX_PAGES * PAGE);
    close(alloc);
    close(dev);
    free(local);
    free(a);
}

int main(void)
{
    struct uring u;
    setvbuf(stdout, NULL, _IOLBF, 0);
    int features = uring_open(&u);
    expect("uring-open-features", features > 0, features);
    if (features <= 0)
        return 1;
    uring_costs(&u);
    event_channel_facts(&u);
    grant_copy_facts();
    return failures != 0;
}
