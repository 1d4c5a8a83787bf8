// What a program prints, line by line, for our log. A program that prints without end fills neither the log nor memory:
// beyond a share per second its lines are only counted, and then it is not read until the second is over.
import { pause } from "../../core/deadline.ts";
import { escapeControls } from "../../core/log.ts";
import { counted } from "../../core/counted.ts";

const PERIOD_MS = 1000;
const LINES_PER_PERIOD = 20;
const BYTES_PER_PERIOD = 64 * 1024;
const LINE_CHARACTERS = 500;
/** A line that is not over yet is taken for one at this length. */
const MAX_PENDING_CHARACTERS = 8192;

export interface Printed {
  /** The last line, at the end of the stream. */
  readonly last: Promise<string>;
  /** Stops reading. */
  cancel(): void;
}

/** `onLine` gets each line, escaped, with "…" in place of `known` texts, e.g. long arguments that are repeated. */
export function relayLines(
  stream: ReadableStream<Uint8Array>,
  onLine: (line: string) => void,
  known: readonly string[] = [],
): Printed {
  const reader = stream.getReader();
  const stopped = new AbortController();
  const relay = async (): Promise<string> => {
    const lines = new Lines(onLine, known);
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return lines.end();
      if (lines.take(decoder.decode(value, { stream: true }), value.length)) continue;
      if (!(await pause(lines.remainingMs, stopped.signal))) return lines.end();
    }
  };
  return {
    last: relay(),
    cancel: () => {
      stopped.abort();
      void reader.cancel().catch(() => {});
    },
  };
}

class Lines {
  readonly #onLine: (line: string) => void;
  readonly #known: readonly string[];
  #sinceMs = performance.now();
  #bytes = 0;
  #lines = 0;
  #dropped = 0;
  #rest = "";
  #last = "";

  constructor(onLine: (line: string) => void, known: readonly string[]) {
    this.#onLine = onLine;
    this.#known = known;
  }

  /** Of the period's share. */
  get remainingMs(): number {
    return Math.max(0, this.#sinceMs + PERIOD_MS - performance.now());
  }

  /** Returns false when the share of bytes is used up. */
  take(text: string, bytes: number): boolean {
    if (this.remainingMs === 0) this.#begin();
    this.#bytes += bytes;
    const parts = `${this.#rest}${text}`.split("\n");
    this.#rest = parts.pop() ?? "";
    for (const part of parts) this.#line(part);
    if (this.#rest.length > MAX_PENDING_CHARACTERS) {
      this.#line(this.#rest);
      this.#rest = "";
    }
    return this.#bytes < BYTES_PER_PERIOD;
  }

  /** Returns the last line. */
  end(): string {
    this.#line(this.#rest);
    this.#begin();
    return this.#last;
  }

  #line(text: string): void {
    const short = this.#known.reduce((left, it) => left.replaceAll(it, "…"), text.trim());
    const line = escapeControls(short, LINE_CHARACTERS);
    if (line === "") return;
    this.#last = line;
    if (++this.#lines <= LINES_PER_PERIOD) this.#onLine(line);
    else this.#dropped++;
  }

  #begin(): void {
    if (this.#dropped > 0) this.#onLine(`(${counted(this.#dropped, "more line")})`);
    this.#sinceMs = performance.now();
    this.#bytes = this.#lines = this.#dropped = 0;
  }
}
