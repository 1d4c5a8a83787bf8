/*
 * Prints, as JSON, the sizes and offsets of the Xen structures that xentool's protocols use, as a C compiler lays them
 * out. Tests compare src/protocol with this.
 */
#include "xen/layouts.h"

#include <stddef.h>
#include <stdio.h>

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
