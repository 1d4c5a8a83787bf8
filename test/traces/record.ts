// bun test/traces/record.ts FILE.json DEVID: prints a golden trace of what a real frontend did with its disk DEVID.
// FILE.json is what `xentool xsring trace --json` saw of its ring; the scenario blkfront-trace records some.
import { readFileSync } from "node:fs";

interface Request {
  readonly type: string;
  readonly reqId: number;
  readonly txId: number;
  readonly path?: string;
  readonly values: readonly string[];
}

/** The events of `xsring trace --json` that matter here. */
type TraceEvent =
  | ({ readonly event: "request" } & Request)
  | {
      readonly event: "reply";
      readonly type: string;
      readonly values: readonly string[];
      readonly request: Request | null;
    }
  | { readonly event: "lost"; readonly direction: "request" | "response" }
  | { readonly event: "violation" | "reset" | "watch-event" | "state" };

/** What the recording scenario has the guest write, where the golden trace needs a line that no frontend writes. */
const MARK = "data/trace";
const FRONTEND = /^(?:\/local\/domain\/\d+\/)?device\/vbd\/(\d+)\/(.+)$/;
const BACKEND = /^\/local\/domain\/\d+\/backend\/[a-z]+\/\d+\/(\d+)\/(.+)$/;
const RING_KEY = /^(?:queue-(\d+)\/)?(ring-ref|event-channel)(\d*)$/;

class Recording {
  readonly #devid: string;
  /** Those of a read come with its reply, and stand where the read began: Linux waits for each. */
  readonly #lines: string[][] = [];
  /** The writes of each open transaction. */
  readonly #transactions = new Map<number, string[]>();
  /** Where the lines of the last one begin. */
  #ended = { txId: 0, at: 0 };
  /** The lines of reads of the backend's keys that have no reply yet. */
  readonly #reading = new Map<number, string[]>();
  /** Whether the frontend has turned to its disk; what passes unseen before that does not matter. */
  #hasBegun = false;
  #backend = "1";
  #frontend = "1";
  #offered = "1";

  constructor(devid: string) {
    this.#devid = devid;
  }

  take(event: TraceEvent): void {
    if (event.event === "request") this.#request(event);
    else if (event.event === "reply" && event.request !== null)
      this.#reply(event.request, event.type === "ERROR" ? undefined : event.values);
    else if (event.event === "violation" || event.event === "reset") throw new Error(`a ${event.event}`);
    else if (event.event === "lost" && event.direction === "request" && this.#hasBegun)
      throw new Error("requests passed unseen");
  }

  end(): string[] {
    if (this.#reading.size > 0) throw new Error("replies passed unseen");
    const lines = this.#lines.flat();
    if (this.#frontend === "6") lines.push("ends closed");
    return [`offers queues ${this.#offered}`, ...lines.filter((_, at) => !isPassing(lines, at))];
  }

  #request({ type, reqId, txId, path = "", values }: Request): void {
    const [value = ""] = values;
    const own = this.#keyOf(FRONTEND, path);
    const other = this.#keyOf(BACKEND, path);
    if (!type.endsWith("WATCH") && (own ?? other) !== undefined) this.#hasBegun = true;
    if (type === "TRANSACTION_END") this.#endTransaction(txId, value);
    else if (type === "WRITE" && path === MARK) this.#lines.push([value]);
    else if (type === "WRITE" && own !== undefined) this.#put(txId, this.#writeOf(own, value));
    else if (type === "RM" && own !== undefined) this.#put(txId, `rm ${own}`);
    else if (type === "READ" && other !== undefined) this.#reads(reqId);
  }

  /** `values` is undefined for an error. */
  #reply({ type, reqId, txId, path = "" }: Request, values: readonly string[] | undefined): void {
    const lines = this.#reading.get(reqId);
    this.#reading.delete(reqId);
    const other = this.#keyOf(BACKEND, path);
    if (type === "TRANSACTION_END" && values === undefined && txId === this.#ended.txId)
      this.#lines.length = this.#ended.at; // it was in vain, and comes again
    else if (other !== undefined && values !== undefined)
      lines?.push(...this.#linesOf(other, values[0] ?? ""));
  }

  #reads(reqId: number): void {
    const lines: string[] = [];
    this.#lines.push(lines);
    this.#reading.set(reqId, lines);
  }

  /** The key that `path` names, if it is this disk's. */
  #keyOf(pattern: RegExp, path: string): string | undefined {
    const [, devid, key] = pattern.exec(path) ?? [];
    return devid === this.#devid ? key : undefined;
  }

  #writeOf(key: string, value: string): string {
    const [, queue = "0", what, page] = RING_KEY.exec(key) ?? [];
    if (what === "ring-ref") return `write ${key} page(${queue},${page === "" ? 0 : page})`;
    if (what === "event-channel") return `write ${key} port(${queue})`;
    if (key !== "state") return value === "" ? `empty ${key}` : `write ${key} ${value}`;
    this.#frontend = value;
    return `state ${value}`;
  }

  #put(txId: number, line: string): void {
    if (txId !== 0) this.#transactions.set(txId, [...(this.#transactions.get(txId) ?? []), line]);
    else if (line.includes("ring-ref")) throw new Error(`${line}: outside a transaction`);
    else this.#lines.push([line]);
  }

  /** A state is written in a transaction of its own, which says no more than the state does. */
  #endTransaction(txId: number, commits: string): void {
    const lines = this.#transactions.get(txId) ?? [];
    this.#transactions.delete(txId);
    this.#ended = { txId, at: this.#lines.length };
    if (commits !== "T" || lines.length === 0) return;
    const rings = ringsOf(lines);
    if (rings !== undefined) this.#lines.push([rings]);
    this.#lines.push(lines.length === 1 ? lines : ["begin", ...lines, "commit"]);
  }

  #linesOf(key: string, value: string): string[] {
    if (key === "multi-queue-max-queues") this.#offered = value;
    if (key !== "state") return [`reads ${key}`];
    if (value === this.#backend) return [];
    this.#backend = value;
    const asks = value === "5" && this.#frontend < "5" ? ["toolstack closes"] : [];
    return [...asks, `backend ${value}`];
  }
}

/** A state that the frontend saw, but did not wait for: it saw the next one before it wrote anything. */
function isPassing(lines: readonly string[], at: number): boolean {
  const isState = (line: string): boolean => line.startsWith("backend ");
  const next = lines.slice(at + 1).find((line) => !line.startsWith("reads "));
  return isState(lines[at] ?? "") && next !== undefined && isState(next);
}

/** `rings N ORDER`, for a transaction that offers rings. */
function ringsOf(lines: readonly string[]): string | undefined {
  if (!lines.some((line) => line.includes("ring-ref"))) return undefined;
  const said = (key: string): string | undefined =>
    lines.find((line) => line.startsWith(`write ${key} `))?.split(" ")[2];
  return `rings ${said("multi-queue-num-queues") ?? 1} ${said("ring-page-order") ?? 0}`;
}

/** The golden trace in a recording, without its first comment. Throws when something of it passed unseen. */
export function goldenTrace(json: string, devid: string): string[] {
  const recording = new Recording(devid);
  for (const line of json.split("\n").filter((text) => text !== ""))
    recording.take(JSON.parse(line) as TraceEvent);
  return recording.end();
}

if (import.meta.main)
  console.log(goldenTrace(readFileSync(process.argv[2], "utf8"), process.argv[3]).join("\n"));
