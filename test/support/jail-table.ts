// The table of csrc/jail/calls.h, as tests see it, and as docs/jail.md shows it.
import { readFileSync } from "node:fs";
import { join } from "node:path";

const TEXT = readFileSync(join(import.meta.dirname, "../../csrc/jail/calls.h"), "utf8");

export interface AllowedCall {
  readonly name: string;
  readonly threads: "CONTROL" | "PLANE" | "BOTH";
  /** Without it: always. */
  readonly need: string;
  readonly check: string;
  readonly why: string;
}

function rows(macro: string): string[][] {
  const line = new RegExp(`^${macro}\\((.*), "(.*)"\\)$`, "gm");
  return [...TEXT.matchAll(line)].map(([, fields = "", why = ""]) => [...fields.split(", "), why]);
}

export const ALLOWED: readonly AllowedCall[] = rows("CALL").map(
  ([name = "", threads, need = "", check = "", why = ""]) => ({
    name,
    threads: threads as AllowedCall["threads"],
    need: need.replace(/^0$|^NEED_/, ""),
    check,
    why,
  }),
);
export const REQUESTS = rows("IOCTL").map(([name = "", , threads = "", need = "", why = ""]) => ({
  name,
  threads,
  need: need.replace(/^0$|^NEED_/, ""),
  why,
}));
export const FATAL = rows("FATAL").map(([name = "", why = ""]) => ({ name, why }));

const THREADS: Readonly<Record<string, string>> = { BOTH: "all", CONTROL: "not planes", PLANE: "planes" };
const ONLY: Readonly<Record<string, string>> = {
  "": "",
  SIM: "on a simulated host",
  XEN: "on Xen",
  NBD: "for an NBD export",
  DIAL: "where no supervisor connects to servers",
  SERVICE: "under a service manager",
  CHILD: "with `--run`",
  SHARE: "of a frontend or a vchan",
  ACCEPT: "where it listens",
  LOCAL: "for a unix socket",
};
const ARGUMENTS: Readonly<Record<string, string>> = {
  ANY: "",
  CHECK_IOCTL: "the requests below",
  SELF: "this process",
  CHILD: "that process",
  NO_CODE: "not executable",
  NO_LIMIT: "sets nothing",
  THREAD: "a thread",
  NAMES: "names",
  FLAGS: "flags and copies",
  LOCKS: "locks",
  UNIX: "unix sockets",
  STREAM: "unix and internet sockets",
};

function table(heads: readonly string[], lines: readonly (readonly string[])[]): string {
  const row = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;
  return [row(heads), row(heads.map(() => "---")), ...lines.map(row)].join("\n");
}

/** The tables of docs/jail.md. */
export function jailTables(): string {
  const words = (...parts: readonly string[]): string => parts.filter((part) => part !== "").join(", ");
  const code = (name: string): string => `\`${name}\``;
  const calls = ALLOWED.map(({ name, threads, need, check, why }) => [
    code(name),
    THREADS[threads] ?? "?",
    words(ONLY[need] ?? "?", ARGUMENTS[check] ?? "?"),
    why,
  ]);
  const requests = REQUESTS.map(({ name, threads, need, why }) => [
    code(name),
    THREADS[threads] ?? "?",
    ONLY[need] ?? "?",
    why,
  ]);
  return [
    table(["call", "threads", "only", "why"], calls),
    table(["request of `ioctl`", "threads", "only", "why"], requests),
    table(
      ["call that ends the process", "because it"],
      FATAL.map(({ name, why }) => [code(name), why]),
    ),
  ].join("\n\n");
}
