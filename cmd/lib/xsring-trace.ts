// The body of `xsring trace`: a live ring or a recorded file, as lines for people or JSON for scripts.
import { closeSync, openSync, writeSync } from "node:fs";
import { XentoolError } from "../../src/core/errors.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import { xsTypeName } from "../../src/protocol/xs-wire.ts";
import { asciiJson } from "../../src/xsring/ascii-json.ts";
import { findDomain, parseDomain, type NamedDomain } from "../../src/xenstore/domains.ts";
import { DomainWatch } from "../../src/xsring/domain-watch.ts";
import type { TraceRecord } from "../../src/xsring/ring-follower.ts";
import { openDomainRing } from "../../src/xsring/source.ts";
import { traceRing } from "../../src/xsring/trace.ts";
import { TraceEvents, type TraceEvent, type TraceFilter } from "../../src/xsring/trace-events.ts";
import { encodeTraceRecord, readTrace, traceFileHeader } from "../../src/xsring/trace-file.ts";
import { eventAsJson, eventText, lineTimeUs } from "../../src/xsring/trace-text.ts";
import { print } from "./output.ts";
import type { CommandContext } from "./run-command.ts";
import { TraceSummary } from "./trace-summary.ts";
import { counted } from "../../src/core/counted.ts";
import type { TraceArguments } from "./xsring-options.ts";

const TYPES_MAX = 64;

export async function runTrace(context: CommandContext, argv: TraceArguments): Promise<void> {
  using printer = new Printer(context.json, argv);
  if (argv.read !== undefined) await showFile(argv.read, printer, context.stop);
  else if (argv.domid === undefined) throw new XentoolError("usage", "which ring? --domid N, or --read FILE");
  else await traceDomain(context, argv, parseDomain(argv.domid, "--domid"), printer);
  printer.finish();
}

function parseFilter({ type, path }: TraceArguments): TraceFilter {
  const names = type.flatMap((each) => each.toUpperCase().split(",")).map((each) => each.trim());
  const known = Array.from({ length: TYPES_MAX }, (_, code) => xsTypeName(code));
  for (const name of names ?? [])
    if (!known.includes(name))
      throw new XentoolError(
        "usage",
        `--type: there is no ${name}; there are ${known.filter((each) => each !== undefined).join(", ")}`,
      );
  return { types: names.length === 0 ? undefined : new Set(names), path };
}

/** Prints events until enough have been printed. */
class Printer implements Disposable {
  /** Fires when --count lines have been printed. */
  readonly enough = new AbortController();
  readonly events: TraceEvents;
  readonly #json: boolean;
  readonly #limit: number;
  readonly #showsTime: boolean;
  readonly #summary: TraceSummary | undefined;
  readonly #output: PrivateFile | undefined;
  #left: number;
  #startUs: number | undefined;
  #lastUs = 0;

  constructor(json: boolean, argv: TraceArguments) {
    this.#json = json;
    this.#limit = argv["string-limit"];
    this.#showsTime = argv.time;
    this.#summary = argv.summary ? new TraceSummary() : undefined;
    this.#left = argv.count ?? Infinity;
    this.events = new TraceEvents(parseFilter(argv), (event) => this.#show(event));
    // Last, so that a mistake in the arguments leaves the file alone.
    this.#output = argv.output === undefined ? undefined : new PrivateFile(argv.output);
  }

  push(record: TraceRecord): void {
    this.#startUs ??= record.timeUs;
    this.#lastUs = record.timeUs;
    this.events.push(record);
  }

  /** Shows what is still waiting, and prints a summary of what was seen on stderr. */
  finish(): void {
    this.events.end(this.#lastUs);
    if (this.#summary !== undefined)
      this.#print(this.#json ? asciiJson({ types: this.#summary.rows }) : this.#summary.text);
    const { requests, replies, watchEvents, lostBytes } = this.events.counts;
    const lost = lostBytes === 0 ? "nothing lost" : `${counted(lostBytes, "byte")} passed unseen`;
    const open = this.events.unansweredCount;
    const unanswered = open === 0 ? "" : `, ${open} unanswered`;
    process.stderr.write(
      `xentool: ${counted(requests, "request")}, ${counted(replies, "reply", { many: "replies" })}${unanswered}, ` +
        `${counted(watchEvents, "watch event")}; ${lost}\n`,
    );
  }

  [Symbol.dispose](): void {
    this.#output?.[Symbol.dispose]();
  }

  #print(line: string): void {
    if (this.#output === undefined) print(line);
    else this.#output.write(Buffer.from(`${line}\n`));
  }

  #show(event: TraceEvent): void {
    const line = this.#json ? this.#jsonLine(event) : this.#textLine(event);
    if (line === undefined || this.#left === 0) return;
    if (this.#summary === undefined) this.#print(line);
    else this.#summary.add(event);
    if (--this.#left === 0) this.enough.abort();
  }

  #jsonLine(event: TraceEvent): string | undefined {
    const data = eventAsJson(event);
    return data === undefined ? undefined : asciiJson(data);
  }

  #textLine(event: TraceEvent): string | undefined {
    const text = eventText(event, this.#limit);
    if (text === undefined) return undefined;
    if (this.#showsTime) return `${timeOfDay(lineTimeUs(event))} ${text}`;
    const seconds = (lineTimeUs(event) - (this.#startUs ?? 0)) / 1e6;
    return `${seconds.toFixed(6).padStart(12)} ${text}`;
  }
}

/** 14:03:05.000123, in local time. */
function timeOfDay(timeUs: number): string {
  const time = new Date(timeUs / 1000).toTimeString().slice(0, 8);
  return `${time}.${String(Math.floor(timeUs % 1e6)).padStart(6, "0")}`;
}

async function showFile(path: string, printer: Printer, stop: AbortSignal): Promise<void> {
  const stream: ReadableStream<Uint8Array> = path === "-" ? Bun.stdin.stream() : Bun.file(path).stream();
  try {
    for await (const { record } of readTrace(stream)) {
      if (stop.aborted || printer.enough.signal.aborted) return;
      printer.push(record);
    }
  } catch (error) {
    if (error instanceof XentoolError) throw error;
    throw new XentoolError("io", `cannot read ${path}`, { path }, error);
  }
}

async function traceDomain(
  context: CommandContext,
  argv: TraceArguments,
  named: NamedDomain,
  printer: Printer,
): Promise<void> {
  const ends = [context.stop, printer.enough.signal];
  if (argv.duration !== undefined) ends.push(AbortSignal.timeout(argv.duration * 1000));
  using platform = await choosePlatform({ platform: context.platform });
  const domid = await findDomain(platform, named, context.timeoutMs);
  // Opened before the file, so that an existing one is not overwritten when the domain does not exist.
  using ring = openDomainRing(platform, domid, "r");
  using file = argv.write === undefined ? undefined : new TraceFile(argv.write, domid);
  using domain = new DomainWatch(platform, domid);
  await traceRing(ring.page, {
    intervalMs: argv.interval,
    signal: AbortSignal.any([...ends, domain.gone, domain.lost]),
    onRecord: (record) => {
      file?.add(record);
      printer.push(record);
    },
    onLook: (timeUs) => {
      printer.events.tick(timeUs);
      file?.flush();
    },
  });
  domain.lost.throwIfAborted();
}

/** A file that only its owner may read: a trace holds what guests keep in xenstore. */
class PrivateFile implements Disposable {
  readonly #path: string;
  readonly #fd: number;

  constructor(path: string) {
    this.#path = path;
    try {
      this.#fd = openSync(path, "w", 0o600);
    } catch (error) {
      throw this.#failure(error);
    }
  }

  write(bytes: Uint8Array): void {
    try {
      for (let at = 0; at < bytes.length;) at += writeSync(this.#fd, bytes, at);
    } catch (error) {
      throw this.#failure(error);
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #failure(error: unknown): XentoolError {
    return new XentoolError("io", `cannot write ${this.#path}`, { path: this.#path }, error);
  }
}

/**
 * The file of --write. The records of each look are written at once, so that a concurrent reader sees whole records.
 */
class TraceFile implements Disposable {
  readonly #file: PrivateFile;
  readonly #domid: number;
  #records: Uint8Array[] = [traceFileHeader()];

  constructor(path: string, domid: number) {
    this.#file = new PrivateFile(path);
    this.#domid = domid;
  }

  add(record: TraceRecord): void {
    this.#records.push(encodeTraceRecord(record, this.#domid));
  }

  flush(): void {
    if (this.#records.length === 0) return;
    const bytes = Buffer.concat(this.#records);
    this.#records = [];
    this.#file.write(bytes);
  }

  [Symbol.dispose](): void {
    using _ = this.#file;
    this.flush();
  }
}
