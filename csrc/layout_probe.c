/*
 * Prints, as JSON, sizes and offsets of the structures that xentool's protocols use, as a C compiler lays
 * them out: declared here from the field lists of Xen's public headers (io/ring.h, io/blkif.h,
 * io/libxenvchan.h, io/xs_wire.h, grant_table.h). A test compares src/protocol with this.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

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

static const char *separator = "";

static void size(const char *name, size_t value) {
  printf("%s\n  \"%s\": %zu", separator, name, value);
  separator = ",";
}

#define SIZE(type) size(#type, sizeof(type))
#define OFFSET(type, field) size(#type "." #field, offsetof(type, field))

#define PROBE_BLKIF(abi)                                                                                    \
  SIZE(struct rw_##abi), OFFSET(struct rw_##abi, operation), OFFSET(struct rw_##abi, nr_segments),           \
      OFFSET(struct rw_##abi, handle), OFFSET(struct rw_##abi, id), OFFSET(struct rw_##abi, sector_number),  \
      OFFSET(struct rw_##abi, seg), SIZE(struct discard_##abi), OFFSET(struct discard_##abi, flag),          \
      OFFSET(struct discard_##abi, id), OFFSET(struct discard_##abi, sector_number),                         \
      OFFSET(struct discard_##abi, nr_sectors), SIZE(struct indirect_##abi),                                 \
      OFFSET(struct indirect_##abi, indirect_op), OFFSET(struct indirect_##abi, nr_segments),                \
      OFFSET(struct indirect_##abi, id), OFFSET(struct indirect_##abi, sector_number),                       \
      OFFSET(struct indirect_##abi, handle), OFFSET(struct indirect_##abi, indirect_grefs),                  \
      SIZE(struct response_##abi), OFFSET(struct response_##abi, id), OFFSET(struct response_##abi, operation), \
      OFFSET(struct response_##abi, status), SIZE(union entry_##abi)

int main(void) {
  printf("{");
  OFFSET(struct sring, req_prod), OFFSET(struct sring, req_event), OFFSET(struct sring, rsp_prod);
  OFFSET(struct sring, rsp_event), OFFSET(struct sring, ring);
  SIZE(struct segment), OFFSET(struct segment, gref), OFFSET(struct segment, first_sect);
  OFFSET(struct segment, last_sect);
  PROBE_BLKIF(x86_64);
  PROBE_BLKIF(x86_32);
  OFFSET(struct vchan_interface, left), OFFSET(struct vchan_interface, right);
  OFFSET(struct vchan_ring, cons), OFFSET(struct vchan_ring, prod);
  OFFSET(struct vchan_interface, left_order), OFFSET(struct vchan_interface, right_order);
  OFFSET(struct vchan_interface, cli_live), OFFSET(struct vchan_interface, srv_live);
  OFFSET(struct vchan_interface, cli_notify), OFFSET(struct vchan_interface, srv_notify);
  OFFSET(struct vchan_interface, grants);
  OFFSET(struct xenstore_domain_interface, req), OFFSET(struct xenstore_domain_interface, rsp);
  OFFSET(struct xenstore_domain_interface, req_cons), OFFSET(struct xenstore_domain_interface, req_prod);
  OFFSET(struct xenstore_domain_interface, rsp_cons), OFFSET(struct xenstore_domain_interface, rsp_prod);
  OFFSET(struct xenstore_domain_interface, server_features);
  OFFSET(struct xenstore_domain_interface, connection), OFFSET(struct xenstore_domain_interface, error);
  OFFSET(struct xenstore_domain_interface, evtchn_port);
  SIZE(struct grant_entry_v1), OFFSET(struct grant_entry_v1, flags), OFFSET(struct grant_entry_v1, domid);
  OFFSET(struct grant_entry_v1, frame);
  printf("\n}\n");
  return 0;
}
