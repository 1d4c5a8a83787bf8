// What a toolstack says about a disk's image in `params` and `mode`: xl's `target=` and `access=`. libxl writes
// format=raw for every disk with a script, and `aio:` for every raw disk without one, so neither shows intent; `raw:`
// and `w!:` before the path do. So does any other format, which libxl writes there for qdisk ("qcow2:/a.qcow2").
import { isNbdUri } from "../../block/image/nbd.ts";
import type { Ways } from "../../block/image/open.ts";
import { isRbdImage, PROGRAM_FORMATS, type ProgramFormat } from "../../block/program/commands.ts";
import { XentoolError } from "../../core/errors.ts";
import { escapeText } from "../../core/log.ts";

export interface ImageWords {
  /** Of a file, an NBD URI, or for rbd POOL/IMAGE. */
  readonly path: string;
  readonly shared: boolean;
  readonly format: "raw" | ProgramFormat | undefined;
}

const FORMATS: readonly (ProgramFormat | "raw")[] = ["raw", ...PROGRAM_FORMATS];
const WORDS = new RegExp(`^((?:(?:aio|file|w!|${FORMATS.join("|")}):)*)(.*)$`, "s");

/** How to override each check in xl's disk line, for messages. */
export const DISK_LINE_WAYS: Ways = {
  shared: "target=w!:PATH",
  raw: "target=raw:PATH",
  // No key of a device names a file with a passphrase.
  format: (name) => (name === "luks" ? "serve --format luks" : `target=${name}:PATH`),
  readOnly: "access=r",
};

/** What stands before the path, word by word; nothing if it begins with none that we know. */
export function splitImageWords(text: string): {
  readonly said: readonly string[];
  readonly format: "raw" | ProgramFormat | undefined;
  readonly path: string;
} {
  const [, words = "", path = ""] = WORDS.exec(text) ?? [];
  const said = words.split(":");
  return { said, format: FORMATS.find((format) => said.includes(format)), path };
}

/** Throws `usage`. As for Xen's own `block` script, `mode` may also be "w!". */
export function parseImageWords(params: string | null, mode: string | null): ImageWords {
  const { said, format, path } = splitImageWords(params ?? "");
  if (!path.startsWith("/") && !isNbdUri(path) && !(said.includes("rbd") && isRbdImage(path)))
    throw new XentoolError("usage", `target "${escapeText(path)}" is not an absolute path of an image`);
  const shared = said.includes("w!") || (mode ?? "").endsWith("!");
  if (FORMATS.some((it) => it !== format && said.includes(it)))
    throw new XentoolError("usage", `target "${escapeText(params ?? "")}" names several formats`);
  if (isNbdUri(path) && format !== undefined)
    throw new XentoolError("usage", `target "${escapeText(params ?? "")}": an NBD export is served as it is`);
  return { path, shared, format };
}
