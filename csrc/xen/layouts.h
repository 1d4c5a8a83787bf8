/*
 * Xen's own structures, from the field lists of its public headers (io/ring.h, io/blkif.h, io/libxenvchan.h,
 * io/xs_wire.h, grant_table.h): those that the C code here needs and those that layout_probe.c prints.
 */
#ifndef XENTOOL_XEN_LAYOUTS_H
#define XENTOOL_XEN_LAYOUTS_H

#include <stdint.h>

/* On x86_32 a 64-bit integer is aligned to 4 bytes. */
typedef uint64_t u64_32 __attribute__((aligned(4)));

struct sring {
  uint32_t req_prod, req_event, rsp_prod, rsp_event;
  uint8_t pvt[48];
  uint64_t ring[1];
};

struct segment {
  uint32_t gref;
  uint8_t first_sect, last_sect;
};

#define BLKIF(abi, u64)                                                                                    \
  struct rw_##abi {                                                                                        \
    uint8_t operation, nr_segments;                                                                        \
    uint16_t handle;                                                                                       \
    u64 id, sector_number;                                                                                 \
    struct segment seg[11];                                                                                \
  };                                                                                                       \
  struct discard_##abi {                                                                                   \
    uint8_t operation, flag;                                                                               \
    uint16_t handle;                                                                                       \
    u64 id, sector_number, nr_sectors;                                                                     \
  };                                                                                                       \
  struct indirect_##abi {                                                                                  \
    uint8_t operation, indirect_op;                                                                        \
    uint16_t nr_segments;                                                                                  \
    u64 id, sector_number;                                                                                 \
    uint16_t handle;                                                                                       \
    uint32_t indirect_grefs[8];                                                                            \
  };                                                                                                       \
  struct response_##abi {                                                                                  \
    u64 id;                                                                                                \
    uint8_t operation;                                                                                     \
    int16_t status;                                                                                        \
  };                                                                                                       \
  union entry_##abi {                                                                                      \
    struct rw_##abi rw;                                                                                    \
    struct response_##abi response;                                                                        \
  };

BLKIF(x86_64, uint64_t)
BLKIF(x86_32, u64_32)

struct vchan_ring {
  uint32_t cons, prod;
};
struct vchan_interface {
  struct vchan_ring left, right;
  uint16_t left_order, right_order;
  uint8_t cli_live, srv_live, cli_notify, srv_notify;
  uint32_t grants[];
};

struct xenstore_domain_interface {
  char req[1024], rsp[1024];
  uint32_t req_cons, req_prod, rsp_cons, rsp_prod;
  uint32_t server_features, connection, error, evtchn_port;
};

struct grant_entry_v1 {
  uint16_t flags, domid;
  uint32_t frame;
};

/* The first number that no domain has (xen.h). */
enum { DOMID_FIRST_RESERVED = 0x7ff0 };

/* Flags of a grant entry and statuses of grant operations. */
enum { GTF_PERMIT_ACCESS = 1, GTF_TYPE_MASK = 3, GTF_READONLY = 4, GTF_READING = 8, GTF_WRITING = 16 };
enum {
  GNTST_OKAY = 0,
  GNTST_GENERAL_ERROR = -1,
  GNTST_BAD_DOMAIN = -2,
  GNTST_BAD_GNTREF = -3,
  GNTST_BAD_PAGE = -9,
  GNTST_EAGAIN = -12,
};

#endif
