// What `xsring trace -c` prints at its end: how often each type was asked for, and how long the answers took.
import { typeText } from "../../src/protocol/xs-content.ts";
import { XS_ERROR } from "../../src/protocol/xs-wire.ts";
import type { TraceEvent } from "../../src/xsring/trace-events.ts";
import { formatCount, formatDuration, formatTable } from "./output.ts";

interface Row {
  readonly type: string;
  calls: number;
  errors: number;
  totalUs: number;
  longestUs: number;
}

/** Counts replies by the type of their request, and watch events. */
export class TraceSummary {
  readonly #rows = new Map<string, Row>();

  /** Counts `event`; a request counts when its reply comes. */
  add(event: TraceEvent): void {
    if (event.kind === "watch-event") this.#row("WATCH_EVENT").calls++;
    if (event.kind !== "reply" || event.request === undefined) return;
    const row = this.#row(typeText(event.request.header.type));
    const latencyUs = event.timeUs - event.request.timeUs;
    row.calls++;
    if (event.packet.header.type === XS_ERROR) row.errors++;
    row.totalUs += latencyUs;
    row.longestUs = Math.max(row.longestUs, latencyUs);
  }

  /** One entry for each type, the one that took longest in all first. */
  get rows(): readonly Readonly<Row>[] {
    return [...this.#rows.values()].toSorted((a, b) => b.totalUs - a.totalUs || b.calls - a.calls);
  }

  /** The entries as a table. */
  get text(): string {
    const columns = [
      { title: "type" },
      ...["calls", "errors", "total", "mean", "longest"].map((title) => ({ title, align: "right" as const })),
    ];
    const lasting = (us: number): string => formatDuration(us * 1000);
    const rows = this.rows.map(({ type, calls, errors, totalUs, longestUs }) => [
      type,
      formatCount(calls),
      formatCount(errors),
      lasting(totalUs),
      lasting(totalUs / calls),
      lasting(longestUs),
    ]);
    return formatTable(columns, rows);
  }

  #row(type: string): Row {
    const known = this.#rows.get(type);
    if (known !== undefined) return known;
    const fresh = { type, calls: 0, errors: 0, totalUs: 0, longestUs: 0 };
    this.#rows.set(type, fresh);
    return fresh;
  }
}
