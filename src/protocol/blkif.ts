// The PV block protocol, public/io/blkif.h: operations, layouts, features and spellings in xenstore.
//
// Requests are always handled in the x86_64 layout below. csrc/ring.c converts x86_32 slots (where everything after the
// first word lies four bytes earlier) while it copies them from or to the ring.

export const BLKIF_OP_READ = 0;
export const BLKIF_OP_WRITE = 1;
export const BLKIF_OP_WRITE_BARRIER = 2;
export const BLKIF_OP_FLUSH_DISKCACHE = 3;
export const BLKIF_OP_DISCARD = 5;
export const BLKIF_OP_INDIRECT = 6;

export const BLKIF_RSP_OKAY = 0;
export const BLKIF_RSP_ERROR = -1;
export const BLKIF_RSP_EOPNOTSUPP = -2;

export const BLKIF_DISCARD_SECURE = 1;

/** Maximum segments in a request's own slot. */
export const BLKIF_MAX_SEGMENTS_PER_REQUEST = 11;
export const BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8;
export const SEGMENTS_PER_INDIRECT_PAGE = 512;
/** The most that the protocol can carry: 8 indirect pages. */
export const MAX_INDIRECT_SEGMENTS = BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_INDIRECT_PAGE;

/** Sectors in the protocol, and in `sectors` in xenstore, have 512 bytes regardless of the disk's sector size. */
export const SECTOR_SIZE = 512;
export const SECTORS_PER_PAGE = 8;

export const VDISK_CDROM = 1;
export const VDISK_READONLY = 4;

/** A request as we keep it: byte offsets of its fields (x86_64 layout), sizes in bytes. */
export const REQUEST = {
  bytes: 112,
  operation: 0,
  /** READ, WRITE, WRITE_BARRIER, FLUSH */
  nrSegments: 1,
  handle: 2,
  id: 8,
  sectorNumber: 16,
  segments: 24,
  /** DISCARD */
  discardFlag: 1,
  discardNrSectors: 24,
  /** INDIRECT */
  indirectOp: 1,
  indirectNrSegments: 2,
  indirectHandle: 24,
  indirectGrefs: 28,
} as const;

/** A segment: part of a granted page, in sectors of 512 bytes, both ends inclusive. */
export const SEGMENT = { bytes: 8, gref: 0, firstSect: 4, lastSect: 5 } as const;

/** A response; its offsets are the same in both layouts. */
export const RESPONSE = { id: 0, operation: 8, status: 10 } as const;

/** The differences between the two layouts on the ring. */
export interface BlkifAbi {
  readonly name: "x86_64" | "x86_32";
  /** The value of the frontend's `protocol` key. */
  readonly protocol: "x86_64-abi" | "x86_32-abi" | "arm-abi";
  /** Distance between slots in bytes. */
  readonly slotBytes: number;
  /** Bytes that a slot lacks after its first word, compared with REQUEST. */
  readonly gapBytes: number;
  readonly responseBytes: number;
}

/** Also Arm's layout, under a name of its own. */
export const ABI_X86_64: BlkifAbi = {
  name: "x86_64",
  protocol: process.arch === "arm64" ? "arm-abi" : "x86_64-abi",
  slotBytes: 112,
  gapBytes: 0,
  responseBytes: 16,
};
export const ABI_X86_32: BlkifAbi = {
  name: "x86_32",
  protocol: "x86_32-abi",
  slotBytes: 108,
  gapBytes: 4,
  responseBytes: 12,
};

/**
 * The layout that a frontend chose with its `protocol` key, or undefined if we do not know it. On x86 a frontend that
 * writes no key means x86_32, as Linux, QEMU and tapdisk assume; Arm's layout is that of x86_64.
 */
export function abiOfProtocol(protocol: string | null): BlkifAbi | undefined {
  switch (protocol) {
    case null:
    case "":
      return process.arch === "x64" ? ABI_X86_32 : ABI_X86_64;
    case "x86_32-abi":
      return ABI_X86_32;
    case "x86_64-abi":
    case "arm-abi":
      return ABI_X86_64;
    default:
      return undefined;
  }
}

const VDEV_EXTENDED = 1 << 28;

/**
 * Parses a virtual device name or number: "xvdb", "xvda1", "sda", "hdc", "d2p1", "51728", "0xca10"; undefined if it is
 * not one. Source: docs/misc/vbd-interface. xvd uses the classic numbering up to disk 15 and the extended one beyond.
 */
export function parseVdev(name: string): number | undefined {
  if (/^(0x[0-9a-f]+|[0-9]+)$/i.test(name)) {
    const value = Number(name);
    return value > 0 && value < 2 ** 29 ? value : undefined;
  }
  const numbered = /^d([0-9]{1,5})p([0-9]{1,3})$/.exec(name);
  if (numbered !== null) return xvdNumber(Number(numbered[1]), Number(numbered[2]));
  const lettered = /^(xvd|sd|hd)([a-z]{1,3})([0-9]{0,3})$/.exec(name);
  if (lettered === null) return undefined;
  const disk = [...lettered[2]].reduce((sum, c) => sum * 26 + c.charCodeAt(0) - 96, 0) - 1;
  const partition = Number(lettered[3]);
  if (lettered[1] === "xvd") return xvdNumber(disk, partition);
  if (lettered[1] === "sd")
    return disk < 16 && partition < 16 ? (8 << 8) | (disk << 4) | partition : undefined;
  if (disk >= 4 || partition >= 64) return undefined;
  return ((disk < 2 ? 3 : 22) << 8) | ((disk & 1) << 6) | partition;
}

function xvdNumber(disk: number, partition: number): number | undefined {
  if (disk < 16 && partition < 16) return (202 << 8) | (disk << 4) | partition;
  return disk < 1 << 20 && partition < 256 ? VDEV_EXTENDED | (disk << 8) | partition : undefined;
}

/** The usual name of a device number ("xvdb" for 51728), or the number itself if it has none. */
export function vdevName(devid: number): string {
  if ((devid & VDEV_EXTENDED) !== 0) return xvdName((devid >> 8) & 0xfffff, devid & 0xff);
  if (devid >> 8 === 202) return xvdName((devid >> 4) & 15, devid & 15);
  if (devid >> 8 === 8) return `sd${diskLetters((devid >> 4) & 15)}${devid & 15 || ""}`;
  return String(devid);
}

function xvdName(disk: number, partition: number): string {
  return `xvd${diskLetters(disk)}${partition || ""}`;
}

function diskLetters(disk: number): string {
  return (disk >= 26 ? diskLetters(Math.floor(disk / 26) - 1) : "") + String.fromCharCode(97 + (disk % 26));
}
