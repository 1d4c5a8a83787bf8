// Lets Xen's own programs run on a simulated host: its libraries' names lead to ours (csrc/programs), and the
// environment shows the way to xenstore. Other programs load none of these libraries.
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import library from "../../build/shim/libxentool_programs.so" with { type: "file" };
import { XentoolError } from "../core/errors.ts";
import { HOST_LIBRARIES, LIBRARIES_ELSEWHERE } from "./directory.ts";

const FILE = "libxentool-programs.so";
const NAMES = [
  "libxencall.so.1",
  "libxendevicemodel.so.1",
  "libxenevtchn.so.1",
  "libxenforeignmemory.so.1",
  "libxengnttab.so.1",
];

/**
 * Writes the libraries into the host's directory `dir`, or, where nothing may be executed from there, into a temporary
 * directory that it links to. They are removed with the host's other files. Fails with `environment`.
 */
export function installLibraries(dir: string): void {
  const place = join(dir, HOST_LIBRARIES);
  try {
    if (mayExecuteIn(dir)) mkdirSync(place, { mode: 0o700 });
    else symlinkSync(mkdtempSync(join(tmpdir(), LIBRARIES_ELSEWHERE)), place);
    writeFileSync(join(place, FILE), readFileSync(library), { mode: 0o700 });
    for (const name of NAMES) symlinkSync(FILE, join(place, name));
  } catch (error) {
    const message = `cannot write the libraries for Xen's programs in ${place}`;
    throw new XentoolError("environment", message, { dir }, error);
  }
}

/** False on a file system mounted noexec, like /dev/shm in many containers. */
function mayExecuteIn(dir: string): boolean {
  const options = new Map<string, string>();
  for (const line of readFileSync("/proc/self/mounts", "utf8").split("\n")) {
    const [, point, , flags] = line.split(" ");
    if (point !== undefined && flags !== undefined) options.set(unescapeMount(point), flags);
  }
  for (let path = realpathSync(dir); ; path = dirname(path)) {
    const flags = options.get(path);
    if (flags !== undefined) return !flags.split(",").includes("noexec");
    if (path === "/") return true;
  }
}

/** Blanks and similar characters are octal escapes in /proc/self/mounts. */
function unescapeMount(text: string): string {
  return text.replaceAll(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCodePoint(Number.parseInt(digits, 8)),
  );
}

/** The environment variables through which programs find the host in `dir` as domain `domid`. */
export function programEnvironment(
  dir: string,
  domid: number,
  env: Readonly<Record<string, string | undefined>> = {},
): Record<string, string> {
  const libraries = join(dir, HOST_LIBRARIES);
  const others = env["LD_LIBRARY_PATH"] ?? "";
  return {
    XENTOOL_SIM: dir,
    XENTOOL_DOMID: String(domid),
    XENSTORED_PATH: join(dir, `dom${domid}`, "xenstored"),
    LD_LIBRARY_PATH: others === "" ? libraries : `${libraries}:${others}`,
  };
}
