// Opens the way of data that a disk is served with.
import { PAGE_SIZE, type Domid } from "../../../core/types.ts";
import type { GrantTable } from "../../../platform/platform.ts";
import { poolBytes } from "../../bounds.ts";
import type { OperationTable } from "../operations.ts";
import type { Clock } from "../../limits/rate-limiter.ts";
import type { OfferedDisk, RequestTable } from "../requests.ts";
import type { RequestCopies } from "./copies.ts";
import { CopyPath } from "./copy.ts";
import { PersistentPath } from "./persistent.ts";
import { MapPath } from "./map.ts";
import type { DataPath, GrantMode, SegmentSource } from "./path.ts";

export interface DataGround {
  readonly domid: Domid;
  readonly requests: RequestTable;
  readonly operations: OperationTable;
  readonly copies: RequestCopies;
  readonly grants: GrantTable;
  readonly clock: Clock;
  readonly disk: OfferedDisk;
}

export function openDataPath(
  mode: GrantMode,
  { domid, requests, operations, copies, grants, clock, disk }: DataGround,
): { path: DataPath; segments: SegmentSource } {
  const bytes = poolBytes(disk.maxIndirectSegments);
  const pages = bytes / PAGE_SIZE;
  switch (mode) {
    case "copy":
      return { path: new CopyPath(domid, requests, operations, copies, bytes), segments: copies };
    case "map":
      return { path: new MapPath(domid, requests, operations, grants, pages), segments: copies };
    case "persistent": {
      const path = new PersistentPath(domid, requests, operations, grants, clock, pages);
      return { path, segments: path };
    }
  }
}
