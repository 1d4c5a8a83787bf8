// A ring page as a drawing in plain ASCII: two bars with their indices, the waiting packets, and the history.
import type { RingFragment, RingPacket, RingStreamView } from "../protocol/xs-ring-view.ts";
import { typeText } from "../protocol/xs-content.ts";
import { XS_RING_BYTES } from "../protocol/xs-ring.ts";
import { CELLS, WAITING_MAX } from "./bounds.ts";
import type { Exchange } from "./exchanges.ts";
import { replyText, requestText, responseText } from "./packet-text.ts";
import type { RingReport } from "./report.ts";
import { connectionName, errorName, featureNames } from "./verdict.ts";
import { counted } from "../core/counted.ts";

export interface DrawingOptions {
  /** The owner of the ring, for the first line. */
  readonly title: string;
  /** How many of the last exchanges to show; 0: none. */
  readonly historyMax: number;
  /** How wide lines should be. Those with packets may be longer: they are text, which can be wrapped or cut. */
  readonly width?: number;
}

/** The lines of the drawing. All of them are printable ASCII. */
export function drawRing(report: RingReport, options: DrawingOptions): string[] {
  const { words } = report;
  const features = featureNames(words.serverFeatures).join(" ");
  const port = words.evtchnPort === 0 ? "" : `   evtchn_port ${words.evtchnPort}`;
  // Two columns before the frame, and two of it.
  const bar = new Bar((options.width ?? Infinity) < CELLS + 4 ? CELLS / 2 : CELLS);
  return [
    `${options.title}: ${report.verdict.text}`,
    `  server_features ${words.serverFeatures}${features === "" ? "" : ` (${features})`}` +
      `   connection ${words.connection} (${connectionName(words.connection)})` +
      `   error ${words.error} (${errorName(words.error)})${port}`,
    ...(report.atRest ? [] : ["  the ring is busy: this look may mix two moments"]),
    "",
    ...drawStream(bar, report.requests, "requests   guest -> server", "req"),
    ...describeWaiting(report.requests),
    "",
    ...drawStream(bar, report.responses, "responses  server -> guest", "rsp"),
    ...describeWaiting(report.responses),
    ...(options.historyMax > 0 ? ["", ...drawHistory(report.history, options.historyMax)] : []),
  ];
}

function drawStream(bar: Bar, stream: RingStreamView, name: string, prefix: string): string[] {
  const { usedBytes, cons, prod } = stream;
  const state =
    usedBytes === undefined
      ? "IMPOSSIBLE INDICES"
      : `${usedBytes} of ${XS_RING_BYTES} bytes wait${usedBytes === XS_RING_BYTES ? ": FULL" : ""}`;
  const marks = [
    { cell: bar.cellOf(cons), label: `${prefix}_cons ${indexText(cons)}` },
    { cell: bar.cellOf(prod), label: `${prefix}_prod ${indexText(prod)}` },
  ];
  const pointers = Array.from({ length: bar.cells }, () => "-");
  for (const { cell } of marks) pointers[cell] = "^";
  const gap = bar.cells + 2 - name.length - state.length;
  return [
    ...(gap > 0 ? [`  ${name}${" ".repeat(gap)}${state}`] : [`  ${name}`, `  ${state}`]),
    `  +${"-".repeat(bar.cells)}+`,
    `  |${bar.fill(stream)}|`,
    `  +${pointers.join("")}+`,
    ...bar.labels(marks),
    ...(stream.poison === undefined ? [] : [`   free part: ${poisonText(stream.poison)}`]),
  ];
}

function poisonText(poison: string): string {
  return poison === "zeroes" ? "zeroes, never written" : `poison (${poison}), not written since a reset`;
}

function indexText(index: number): string {
  return index < XS_RING_BYTES ? String(index) : `${index} (at ${index % XS_RING_BYTES})`;
}

interface Mark {
  readonly cell: number;
  readonly label: string;
}

/** The bar that is the ring, of cells that have the same number of bytes. */
class Bar {
  constructor(readonly cells: number) {}

  cellOf(index: number): number {
    return Math.floor(((index % XS_RING_BYTES) * this.cells) / XS_RING_BYTES);
  }

  /** `#` waits, `.` was consumed, `x` is poison, a space was never written. */
  fill({ cons, prod, usedBytes, poison }: RingStreamView): string {
    if (usedBytes === undefined) return "?".repeat(this.cells);
    const free = poison === undefined ? "." : poison === "zeroes" ? " " : "x";
    const written = poison === undefined ? this.cells : Math.ceil((prod * this.cells) / XS_RING_BYTES);
    const bar: string[] = Array.from({ length: this.cells }, (_, cell) => (cell < written ? "." : free));
    for (let at = 0; at < usedBytes; at++) bar[this.cellOf((cons + at) >>> 0)] = "#";
    return bar.join("");
  }

  /** Both labels under their pointers, one per line, the rightmost pointer's first. */
  labels(marks: readonly Mark[]): string[] {
    const [first, second] = marks.toSorted((a, b) => b.cell - a.cell) as [Mark, Mark];
    const inOrder = first.cell === second.cell ? marks : [first, second];
    return inOrder.map(({ cell, label }) => this.#place(cell, label));
  }

  /** Starts the label under its pointer, or ends it there when the line has no room. */
  #place(cell: number, label: string): string {
    const start = cell + label.length <= this.cells ? cell : Math.max(0, cell - label.length + 1);
    return `   ${" ".repeat(start)}${label}`;
  }
}

function describeWaiting(stream: RingStreamView): string[] {
  const { direction, crossing, partial, violation } = stream;
  const more = stream.waiting.length - WAITING_MAX;
  const text = ({ header, payload }: Pick<RingPacket, "header" | "payload">): string =>
    direction === "request"
      ? `#${header.reqId} ${requestText(header, payload)}`
      : `${header.reqId === 0 ? "" : `#${header.reqId} `}${responseText(header, payload)}`;
  return [
    ...(crossing === undefined ? [] : [`   half taken: ${fragmentText(crossing)}`]),
    ...stream.waiting
      .slice(0, WAITING_MAX)
      .map((packet) => `   waits: ${text(packet)}, ${16 + packet.payload.length} bytes`),
    ...(more > 0 ? [`   waits: ${counted(more, "more packet")}`] : []),
    ...(partial === undefined ? [] : [`   half there: ${fragmentText(partial)}`]),
    ...(violation === undefined ? [] : [`   then, at ${violation.at}: ${violation.reason}`]),
    ...(stream.atBoundary === undefined && stream.usedBytes !== undefined && violation === undefined
      ? ["   whether the consumer is at the boundary of a packet cannot be seen"]
      : []),
  ];
}

function fragmentText({ header, producedBytes, takenBytes }: RingFragment): string {
  const taken = takenBytes === 0 ? "" : `, ${takenBytes} taken`;
  if (header === undefined) return `${counted(producedBytes, "byte")} of a header${taken}`;
  const size = 16 + header.length;
  return `#${header.reqId} ${typeText(header.type)}, ${producedBytes} of ${size} bytes produced${taken}`;
}

function drawHistory(history: readonly Exchange[], limit: number): string[] {
  if (history.length === 0) return ["  history: nothing can be recovered"];
  const shown = history.slice(-limit);
  const left = history.length - shown.length;
  return [
    `  history, newest last${left > 0 ? ` (${left} older left out)` : ""}:`,
    ...shown.map(({ request, reply }) => `   ${exchangeText(request, reply)}`),
  ];
}

function exchangeText(request: RingPacket | undefined, reply: RingPacket | undefined): string {
  const answer = reply === undefined ? "" : replyText(reply.header, reply.payload);
  if (request !== undefined)
    return `#${request.header.reqId} ${requestText(request.header, request.payload)}${
      reply === undefined ? "   (no reply in sight)" : ` = ${answer}`
    }`;
  return reply === undefined ? "" : responseText(reply.header, reply.payload);
}
