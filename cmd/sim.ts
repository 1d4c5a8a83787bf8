// `xentool sim`: an embedded Xen platform, for one command or in the background.
import { XentoolError } from "../src/core/errors.ts";
import { toDomid, type Domid } from "../src/core/types.ts";
import type { SimHostOptions, SimStatus } from "../src/sim/host.ts";
import { DEFAULT_LIMITS_TEXT, parseLimits } from "../src/sim/limits.ts";
import { PERSONALITY_NAMES } from "../src/xenstore/server/personality.ts";
import { command, group, type ArgumentsOf } from "./lib/command.ts";
import { choice, flag, text, texts, wholeNumber } from "./lib/option.ts";
import { formatTable, paint, print, printJson } from "./lib/output.ts";
import type { CommandContext } from "./lib/run-command.ts";
import { counted } from "../src/core/counted.ts";

const HOST_OPTIONS = {
  domains: wholeNumber("How many domains, domain 0 included", 1, Infinity, { initial: 3 }),
  personality: choice(PERSONALITY_NAMES, "Which xenstore server to behave like", { initial: "oxenstored" }),
  limit: texts(`A limit of each domain, repeatable; default ${DEFAULT_LIMITS_TEXT}`),
};
type HostArguments = ArgumentsOf<typeof HOST_OPTIONS>;

const DIR_OPTION = {
  dir: text("Directory of the host; default: what XENTOOL_SIM names", { complete: "directory" }),
};

function optionsOf(argv: HostArguments): SimHostOptions {
  return { domains: argv.domains, personality: argv.personality, limits: parseLimits(argv.limit) };
}

function chosenDir(argv: ArgumentsOf<typeof DIR_OPTION>): string {
  const dir = argv.dir ?? process.env["XENTOOL_SIM"];
  if (dir === undefined || dir === "")
    throw new XentoolError("usage", "which simulated host? Name its directory with --dir or XENTOOL_SIM");
  return dir;
}

const run = command({
  name: "run",
  summary: "Run a command on a simulated host of its own, then end what still uses the host",
  options: HOST_OPTIONS,
  timeout: "Without effect: COMMAND may take as long as it takes",
  trailing: "-- COMMAND [ARGUMENTS]",
  examples: [
    ["xentool sim run -- sh", "a shell in domain 0; with XENTOOL_DOMID=1 a command is domain 1"],
    ["xentool sim run --domains 2 -- xentool sim status", "what there is from the start"],
    ["xentool sim run --limit share-pages=64 -- ./test.sh", "a test where shared pages run out"],
  ],
  run: async (argv, context) => {
    const words = argv["--"] ?? [];
    if (words.length === 0) throw new XentoolError("usage", "run what? xentool sim run -- COMMAND");
    const { runInHost } = await import("../src/sim/run.ts");
    const status = runInHost(words, optionsOf(argv));
    context.leaveSignals();
    return status;
  },
});

/** The command line that runs this program again; arguments can be appended. */
function selfCommand(): string[] {
  return Bun.main.startsWith("/$bunfs/") ? [process.execPath] : [process.execPath, Bun.main];
}

const START_OPTIONS = {
  ...HOST_OPTIONS,
  dir: text("An empty directory, or one to make; default: a new one in /dev/shm", { complete: "directory" }),
  foreground: flag("Stay, until a signal or `sim stop`"),
};
type StartArguments = ArgumentsOf<typeof START_OPTIONS>;

const start = command({
  name: "start",
  summary: "Start a simulated host in the background",
  options: START_OPTIONS,
  timeout: "Seconds that the host may take to start (default 15)",
  examples: [
    ['eval "$(xentool sim start)"', "start one, and use it in this shell"],
    ["xentool sim start --dir /run/my-sim --domains 5", "five domains, in a directory of one's choice"],
  ],
  run: (argv, context) =>
    argv.foreground ? stayInForeground(argv, context) : startInBackground(argv, context),
});

async function stayInForeground(argv: StartArguments, { stop }: CommandContext): Promise<void> {
  const { serveInForeground } = await import("../src/sim/daemon.ts");
  const place = argv.dir === undefined ? {} : { dir: argv.dir };
  await serveInForeground({ ...optionsOf(argv), ...place }, stop, (ready) => printJson(ready, true));
}

async function startInBackground(argv: StartArguments, { stop, timeoutMs }: CommandContext): Promise<void> {
  const { startDaemon } = await import("../src/sim/daemon.ts");
  optionsOf(argv);
  const limits = argv.limit.flatMap((limit) => ["--limit", limit]);
  const flags = [
    "--foreground",
    "--domains",
    String(argv.domains),
    "--personality",
    argv.personality,
    ...limits,
  ];
  const ready = await startDaemon([...selfCommand(), "sim", "start", ...flags], argv.dir, {
    stop,
    timeoutMs,
  });
  if (argv.json) printJson(ready);
  else for (const line of await exportsFor(ready.dir)) print(line);
}

/** What a shell evaluates to use the host: our own variables, and those that Xen's own programs need. */
async function exportsFor(dir: string): Promise<string[]> {
  const { programEnvironment } = await import("../src/sim/programs.ts");
  const { XENTOOL_SIM, XENSTORED_PATH, LD_LIBRARY_PATH } = programEnvironment(dir, 0);
  return [
    `export XENTOOL_SIM=${shellQuote(String(XENTOOL_SIM))}`,
    `export XENSTORED_PATH=${shellQuote(String(XENSTORED_PATH))}`,
    `export LD_LIBRARY_PATH=${shellQuote(String(LD_LIBRARY_PATH))}\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}`,
  ];
}

function shellQuote(text: string): string {
  return /^[\w/.-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

const status = command({
  name: "status",
  summary: "Show a simulated host and what is in use there",
  options: DIR_OPTION,
  timeout: "Seconds that the host may take to answer (default 10)",
  examples: [
    ["xentool sim status", "the one that XENTOOL_SIM names"],
    ["xentool sim status --json", "all of it, for a program"],
  ],
  run: async (argv, { json, timeoutMs }) => {
    const { hostStatus } = await import("../src/sim/daemon.ts");
    const answer = await hostStatus(chosenDir(argv), timeoutMs);
    if (json) printJson(answer);
    else await printStatus(answer);
  },
});

async function printStatus(answer: SimStatus): Promise<void> {
  const { describeUsages, isHeld } = await import("../src/sim/usage.ts");
  const { usage, xenstore, domains } = answer;
  const columns = [{ title: "domain" }, { title: "name" }].concat(
    ["processes", "grants", "mappings", "ports"].map((title) => ({ title, align: "right" as const })),
  );
  const rows = domains.map(({ domid, name }) => {
    const count = (kind: string): string =>
      String(usage.filter((item) => item.kind === kind && item.domid === domid).length);
    return [String(domid), name, count("process"), count("grant"), count("map"), count("port")];
  });
  print(
    paint("bold", answer.dir) + `: process ${answer.pid}, ${answer.personality}, since ${answer.started}`,
  );
  print(formatTable(columns, rows));
  const { nodes, connections, watches, transactions } = xenstore;
  print(
    `xenstore: ${counted(nodes, "node")}, ${counted(connections, "connection")}, ` +
      `${counted(watches, "watch", { many: "watches" })}, ${counted(transactions, "transaction")}`,
  );
  const held = usage.filter((item) => isHeld(item) && item.pid !== answer.pid);
  for (const line of describeUsages(held)) print(`  ${line}`);
}

const stop = command({
  name: "stop",
  summary: "End a simulated host and remove its directory",
  options: DIR_OPTION,
  timeout: "Seconds that the host may take to end (default 15)",
  examples: [
    ["xentool sim stop", "the one that XENTOOL_SIM names"],
    ["xentool sim stop --dir /run/my-sim", "another one"],
  ],
  run: async (argv, { json, timeoutMs }) => {
    const { stopHost } = await import("../src/sim/daemon.ts");
    const dir = chosenDir(argv);
    const outcome = await stopHost(dir, timeoutMs);
    if (json) printJson({ dir, outcome });
    else if (outcome === "was dead")
      process.stderr.write(`${dir}: its host had died; removed what it left\n`);
  },
});

const list = command({
  name: "list",
  summary: "Show the simulated hosts on this machine, and what dead ones have left behind",
  options: {},
  timeout: "Seconds that each host may take to answer (default 2)",
  examples: [
    ["xentool sim list", "which there are, where, and with which domains"],
    [
      "xentool sim list --json | jq -r '.[] | select(.state == \"dead\").dir'",
      "what `sim stop --dir` would remove",
    ],
  ],
  run: async (_argv, { json, timeoutMs }) => {
    const { findHosts } = await import("../src/sim/list.ts");
    const { escapeText } = await import("../src/core/log.ts");
    const hosts = await findHosts(timeoutMs);
    if (json) return printJson(hosts);
    if (hosts.length === 0) return print("no simulated host");
    const columns = ["directory", "process", "state", "domains"].map((title) => ({ title }));
    const rows = hosts.map(({ dir, pid, state, domains }) => {
      const numbers = domains.map(({ domid }) => domid).join(", ");
      return [escapeText(dir), String(pid), state, numbers];
    });
    print(formatTable(columns, rows));
    if (hosts.some(({ state }) => state === "dead"))
      process.stderr.write(
        "xentool: to remove what a dead host has left: xentool sim stop --dir DIRECTORY\n",
      );
  },
});

const exec = command({
  name: "exec",
  summary: "Run a command as a domain of a simulated host",
  options: {
    domain: text("The domain, by number or name", { positional: true, complete: "domain" }),
    ...DIR_OPTION,
  },
  timeout: "Seconds that xenstore may take to find a domain by its name (default 5); COMMAND is not bounded",
  trailing: "-- COMMAND [ARGUMENTS]",
  examples: [
    ["xentool sim exec 1 -- xenstore-ls", "what domain 1 sees of xenstore"],
    ["xentool sim exec 2 -- ./my-vchan-server", "a program on libxenvchan, in domain 2"],
  ],
  run: async (argv, context) => {
    const words = argv["--"] ?? [];
    if (words.length === 0) throw new XentoolError("usage", "run what? xentool sim exec DOMAIN -- COMMAND");
    const { runAsDomain } = await import("../src/sim/run.ts");
    const dir = chosenDir(argv);
    const status = runAsDomain(words, dir, await domainOf(dir, argv.domain, context.timeoutMs));
    context.leaveSignals();
    return status;
  },
});

/** The number of a domain of the host in `dir`. */
async function domainOf(dir: string, text: string, timeoutMs: number | undefined): Promise<Domid> {
  const { findDomain, parseDomain } = await import("../src/xenstore/domains.ts");
  const named = parseDomain(text, "DOMAIN");
  if (typeof named !== "string") return named;
  const { openPlatform } = await import("../src/platform/open.ts");
  using platform = openPlatform({ name: "sim", dir, domid: toDomid(0) });
  return await findDomain(platform, named, timeoutMs);
}

export const simCommand = group({
  name: "sim",
  summary: "A simulated Xen host, for trying things and for tests",
  actions: [run, start, exec, list, status, stop],
  examples: [
    ["xentool sim run -- sh", "a shell in domain 0 of a host that ends with it"],
    ['eval "$(xentool sim start)"', "start one in the background, and use it in this shell"],
  ],
});
