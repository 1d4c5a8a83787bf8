// The body of `xsring inspect`: one look at a ring, or many, as a drawing, as JSON, and as an exit status.
import { pause } from "../../src/core/deadline.ts";
import { XentoolError } from "../../src/core/errors.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import type { XsRingPage } from "../../src/protocol/xs-ring.ts";
import { asciiJson } from "../../src/xsring/ascii-json.ts";
import { findDomain, parseDomain } from "../../src/xenstore/domains.ts";
import { DomainWatch } from "../../src/xsring/domain-watch.ts";
import { drawRing } from "../../src/xsring/drawing.ts";
import { inspectRing, inspectSettled, reportAsJson, type RingReport } from "../../src/xsring/report.ts";
import { openDomainRing, readRingFile } from "../../src/xsring/source.ts";
import { VERDICT_STATUS } from "../../src/xsring/verdict.ts";
import { print } from "./output.ts";
import type { CommandContext } from "./run-command.ts";
import { cut, terminalSize, wrap, type ScreenSize } from "./terminal.ts";
import type { InspectArguments } from "./xsring-options.ts";

const CLEAR_SCREEN = "\x1b[H\x1b[2J";

/** Returns the exit status for the verdict. */
export async function runInspect(context: CommandContext, argv: InspectArguments): Promise<number> {
  if (argv.file !== undefined) {
    if (argv.watch) throw new XentoolError("usage", "--watch needs a live ring: --domid");
    const report = inspectRing(await readRingFile(argv.file));
    return show(context, argv, report, argv.file === "-" ? "stdin" : "the page");
  }
  if (argv.domid === undefined) throw new XentoolError("usage", "which ring? --domid N, or --file PAGE");
  const named = parseDomain(argv.domid, "--domid");
  using platform = await choosePlatform({ platform: context.platform });
  const domid = await findDomain(platform, named, context.timeoutMs);
  using ring = openDomainRing(platform, domid, "r");
  if (argv.watch) {
    using domain = new DomainWatch(platform, domid);
    const stop = AbortSignal.any([context.stop, domain.gone]);
    return await watch({ ...context, stop }, argv, ring.page, `domain ${domid}`);
  }
  return show(context, argv, await inspectSettled(ring.page, argv.settle * 1000), `domain ${domid}`);
}

function show(context: CommandContext, argv: InspectArguments, report: RingReport, title: string): number {
  if (context.json) print(asciiJson(reportAsJson(report), 2));
  else print(drawing(report, title, argv.history, terminalSize()).join("\n"));
  return VERDICT_STATUS[report.verdict.code];
}

/** The drawing, its text wrapped on a terminal. */
function drawing(
  report: RingReport,
  title: string,
  historyMax: number,
  size: ScreenSize | undefined,
): string[] {
  const width = size?.width ?? Infinity;
  return drawRing(report, { title, historyMax, width }).flatMap((line) => wrap(line, width));
}

/** The drawing on one screen: the verdict stays on top of it, and the history gets the lines that are left. */
function screenful(
  report: RingReport,
  title: string,
  historyMax: number,
  { width, height }: ScreenSize,
): string[] {
  const draw = (exchanges: number): string[] => drawRing(report, { title, historyMax: exchanges, width });
  const [verdict = "", ...rest] = draw(0);
  // The last line stays free for the cursor; a blank line and a title come before the history.
  const room = height - 1 - wrap(verdict, width).length - rest.length - 2;
  const [, ...lines] = draw(Math.min(historyMax, Math.max(0, room)));
  return [...wrap(verdict, width), ...lines.map((line) => cut(line, width))].slice(0, height - 1);
}

/** On a terminal the drawing is redrawn; elsewhere one line, or one JSON object, is printed whenever it changes. */
async function watch(
  { json, stop }: CommandContext,
  argv: InspectArguments,
  page: XsRingPage,
  title: string,
): Promise<number> {
  let last = "";
  let status = 0;
  while (!stop.aborted) {
    const report = await inspectSettled(page, argv.settle * 1000);
    status = VERDICT_STATUS[report.verdict.code];
    const size = terminalSize();
    const text = json
      ? asciiJson(reportAsJson(report))
      : size === undefined
        ? summary(report, title)
        : CLEAR_SCREEN + screenful(report, title, argv.history, size).join("\n");
    if (text !== last) print(text);
    last = text;
    await pause(argv.interval * 1000, stop);
  }
  return status;
}

function summary({ words, verdict }: RingReport, title: string): string {
  const { reqCons, reqProd, rspCons, rspProd } = words;
  return `${title}: ${verdict.text}; req ${reqCons}/${reqProd}, rsp ${rspCons}/${rspProd}`;
}
