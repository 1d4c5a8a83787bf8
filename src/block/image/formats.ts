// Recognises images that are not the disk itself but a container with a disk in it, by the magic number that each
// format begins (or, for VHD, ends) with. If one were served as raw, the guest's first write would destroy it.

import type { ContainerFormat } from "../program/commands.ts";

export interface ImageFormat {
  /** As in "it looks like a qcow2 image". */
  readonly name: string;
  /** What to do instead, if it cannot be served as what it is. */
  readonly advice?: string;
  /** As what it can be served. */
  readonly format?: ContainerFormat;
}

interface Magic extends ImageFormat {
  /** Offset from the beginning or, if negative, from the end. */
  readonly at: number;
  /** Bytes, one character each. */
  readonly bytes: string;
}

const CONVERT = "convert it (qemu-img convert -O raw), or serve the device that qemu-nbd makes of it";
const UNLOCK = "or open it with cryptsetup, and serve the device in /dev/mapper";

const MAGICS: readonly Magic[] = [
  { name: "a qcow2 image", at: 0, bytes: "QFI\xfb", format: "qcow2" },
  { name: "a QED image", at: 0, bytes: "QED\0", format: "qed" },
  { name: "a VHD image", at: 0, bytes: "conectix", format: "vhd" },
  { name: "a VHD image", at: -512, bytes: "conectix", format: "vhd" },
  { name: "a VHDX image", at: 0, bytes: "vhdxfile", format: "vhdx" },
  { name: "a VMDK image", at: 0, bytes: "KDMV", format: "vmdk" },
  { name: "a VMDK image", at: 0, bytes: "COWD", format: "vmdk" },
  { name: "a VMDK image", at: 0, bytes: "# Disk DescriptorFile", format: "vmdk" },
  { name: "a VDI image", at: 64, bytes: "\x7f\x10\xda\xbe", format: "vdi" },
  { name: "a Parallels image", at: 0, bytes: "WithoutFreeSpace", format: "parallels" },
  { name: "a Parallels image", at: 0, bytes: "WithouFreSpacExt", format: "parallels" },
  { name: "a Bochs image", at: 0, bytes: "Bochs Virtual HD Image", advice: CONVERT },
  { name: "a DMG image", at: -512, bytes: "koly", advice: CONVERT },
  { name: "a LUKS volume", at: 0, bytes: "LUKS\xba\xbe", format: "luks", advice: UNLOCK },
];

/** Number of bytes at the beginning, and at the end, that hold the magic numbers. */
export const HEAD_BYTES = 512;
export const TAIL_BYTES = 512;

/** The format of an image with this head and tail, or undefined if it may well be a disk. */
export function recogniseFormat(head: Buffer, tail: Buffer): ImageFormat | undefined {
  return MAGICS.find(({ at, bytes }) => {
    const [part, from] = at < 0 ? [tail, tail.length + at] : [head, at];
    return from >= 0 && part.toString("latin1", from, from + bytes.length) === bytes;
  });
}
