// The body of `xsring close`: decide, announce the plan and its risks, carry it out, and report the result.
import { XentoolError } from "../../src/core/errors.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import type { Platform } from "../../src/platform/platform.ts";
import { SimPlatform } from "../../src/platform/sim.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { findDomain, parseDomain } from "../../src/xenstore/domains.ts";
import { asciiJson } from "../../src/xsring/ascii-json.ts";
import { closeRing, identifyServer, type RingToClose } from "../../src/xsring/close.ts";
import { planClose, type ClosePlan } from "../../src/xsring/close-plan.ts";
import { inspectSettled, reportAsJson } from "../../src/xsring/report.ts";
import { openDomainRing } from "../../src/xsring/source.ts";
import { print } from "./output.ts";
import type { CommandContext } from "./run-command.ts";
import type { CloseArguments } from "./xsring-options.ts";

/** oxenstored looks at a ring without an event every 20 s, on a tick of 15 s. */
const ANSWER_TIMEOUT_MS = 40_000;
const SETTLE_MS = 200;

export async function runClose(context: CommandContext, argv: CloseArguments): Promise<number> {
  if ((argv.domid === undefined) === !argv.self)
    throw new XentoolError("usage", "which ring? --domid N, or --self for this domain's own, not both");
  const named = argv.domid === undefined ? undefined : parseDomain(argv.domid, "--domid");
  using platform = await choosePlatform({ platform: context.platform });
  if (named === undefined) return await closeOwnRing(context, argv, platform);
  const { timeoutMs } = context;
  const domid = await findDomain(platform, named, timeoutMs);
  using opened = openDomainRing(platform, domid, "rw");
  using xenstore = await Xenstore.connect(platform, { timeoutMs });
  const toolstack = { platform, xenstore };
  return await close(context, argv, { domid, page: opened.page, notify: undefined, toolstack });
}

/** Only a simulated domain gives its processes access to the ring; on Linux the kernel keeps the page and the port. */
async function closeOwnRing(
  context: CommandContext,
  argv: CloseArguments,
  platform: Platform,
): Promise<number> {
  if (!(platform instanceof SimPlatform)) {
    const message = `the kernel of this domain owns its xenstore ring and gives neither page nor port away; close it from domain 0: xentool xsring close --domid ${platform.domid}`;
    throw new XentoolError("environment", message);
  }
  using channels = platform.openEventChannels();
  const { page, port } = platform.openStoreRing(channels);
  using _ = page;
  const notify = (): void => void channels.notify(port);
  return await close(context, argv, { domid: platform.domid, page, notify, toolstack: undefined });
}

async function close(context: CommandContext, argv: CloseArguments, ring: RingToClose): Promise<number> {
  const timeoutMs = context.timeoutMs ?? ANSWER_TIMEOUT_MS;
  const report = await inspectSettled(ring.page, SETTLE_MS);
  const server = await identifyServer(report, ring.toolstack?.xenstore, timeoutMs);
  const plan = planClose(report, server, {
    domid: ring.domid,
    method: argv.method,
    force: argv.force,
    isSelf: argv.self,
  });
  announce(plan, ring.domid, argv["dry-run"]);
  if (argv["dry-run"]) {
    if (context.json) print(asciiJson({ dryRun: true, domid: ring.domid, ...plan }, 2));
    return 0;
  }
  const result = await closeRing(plan, ring, {
    timeoutMs,
    signal: context.stop,
    kickPath: argv.kick,
  });
  const elapsedMs = Math.round(result.elapsedMs);
  if (context.json) {
    const { method } = result;
    print(asciiJson({ domid: ring.domid, method, elapsedMs, ring: reportAsJson(result.report) }, 2));
  } else
    print(
      `domain ${ring.domid}: closed by ${result.method} in ${elapsedMs} ms; ${result.report.verdict.text}`,
    );
  return 0;
}

/** Announces on stderr what will happen, before it does. */
function announce(plan: ClosePlan, domid: number, isDryRun: boolean): void {
  const lines = [
    `closing the xenstore ring of domain ${domid} by ${plan.method}${plan.destructive ? ", which destroys state" : ""}${isDryRun ? " would" : ""}:`,
    ...plan.steps.map((step, index) => `  ${index + 1}. ${step}`),
    ...plan.risks.map((risk) => `  beware: ${risk}`),
  ];
  process.stderr.write(lines.map((line) => `xentool: ${line}\n`).join(""));
}
