// `xentool selftest`: tries on this very host what disks, vchans and xenstore clients rely on.
import type { CheckName } from "../src/selftest/run.ts";
import { command, group } from "./lib/command.ts";
import { text } from "./lib/option.ts";
import { print, printJson } from "./lib/output.ts";
import type { CommandContext } from "./lib/run-command.ts";

/** The time of one check. It takes seconds; on emulated processors it may take a minute. */
const LIMIT_MS = 120_000;

const TIMEOUT = "Seconds that the check may take (default 120), and xenstore to answer (default 5)";

const FAILED = ["1", "the check failed: standard output says at what"] as const;

const block = command({
  name: "block",
  summary: "Serve ourselves a disk; fill it, flush it, read it back",
  options: {},
  timeout: TIMEOUT,
  statuses: [FAILED],
  examples: [
    ["xentool selftest block", "with each way for data to cross; a flush must make it safe"],
    ["xentool sim run -- xentool selftest block", "the same, where there is no Xen"],
  ],
  run: (_argv, context) => runSelftest("block", context, undefined),
});

const vchan = command({
  name: "vchan",
  summary: "Send bytes through a vchan to an echo and compare what comes back",
  options: {
    peer: text(
      "The domain that runs the echo, by number or name; without it we do, which only the simulation allows",
      {
        complete: "domain",
      },
    ),
  },
  timeout: TIMEOUT,
  statuses: [FAILED],
  examples: [
    ["xentool selftest vchan --peer 5", "domain 5 runs: xentool vchan listen 0 xentool-selftest -- cat"],
    ["xentool sim run -- xentool selftest vchan", "both ends in the simulation"],
  ],
  run: ({ peer }, context) => runSelftest("vchan", context, peer),
});

const xenstore = command({
  name: "xenstore",
  summary: "Try nodes, transactions and watches of xenstore below a node of our own",
  options: {},
  timeout: TIMEOUT,
  statuses: [FAILED],
  examples: [["xentool selftest xenstore", "in any domain; what it makes is removed"]],
  run: (_argv, context) => runSelftest("xenstore", context, undefined),
});

export const selftestCommand = group({
  name: "selftest",
  summary: "Check that disks, vchans and xenstore work on this host",
  actions: [block, vchan, xenstore],
  examples: [
    ["xentool selftest block", "exit status 0: it works; 1: it does not, and why"],
    ["xentool selftest xenstore --json", "for scripts"],
  ],
});

async function runSelftest(
  check: CheckName,
  context: CommandContext,
  domain: string | undefined,
): Promise<number> {
  const { runCheck } = await import("../src/selftest/run.ts");
  const { withSession } = await import("./lib/session.ts");
  const { spawnWorker } = await import("./spawn-worker.ts");
  const { findDomainIn, parseDomain } = await import("../src/xenstore/domains.ts");
  const { stop, json, timeoutMs } = context;
  const named = domain === undefined ? undefined : parseDomain(domain, "--peer");
  return withSession(context, async ({ platform, xenstore }) => {
    const peer = named === undefined ? undefined : await findDomainIn(xenstore, named);
    const ground = { platform, xenstore, spawnWorker, peer, stop };
    const passed = json ? () => {} : (what: string) => print(`ok      ${what}`);
    const result = await runCheck(check, ground, timeoutMs ?? LIMIT_MS, passed);
    if (json) printJson(result);
    else if (result.failure !== undefined) print(`FAILED  ${result.failure}`);
    return result.failure === undefined ? 0 : 1;
  });
}
