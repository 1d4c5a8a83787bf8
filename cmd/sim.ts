// `xentool sim`: an embedded Xen platform, for one command or in the background.
import type { Argv, CommandModule } from "yargs";
import { XentoolError } from "../src/core/errors.ts";
import { toDomid } from "../src/core/types.ts";
import type { SimHostOptions, SimStatus } from "../src/sim/host.ts";
import { DEFAULT_LIMITS_TEXT, parseLimits } from "../src/sim/limits.ts";
import { PERSONALITY_NAMES, type PersonalityName } from "../src/xenstore/server/personality.ts";
import { actionGroup } from "./lib/action-group.ts";
import { withExamples } from "./lib/examples.ts";
import { formatTable, paint, print, printJson } from "./lib/output.ts";
import { runCommand, type CommandContext, type GlobalArguments } from "./lib/run-command.ts";

interface HostArguments extends GlobalArguments {
  readonly domains: number;
  readonly personality: PersonalityName;
  readonly limit: readonly string[];
}

interface DirArguments extends GlobalArguments {
  readonly dir: string | undefined;
}

function hostOptions<T>(argv: Argv<T>): Argv<T & Omit<HostArguments, keyof GlobalArguments>> {
  return argv
    .option("domains", {
      type: "number",
      default: 3,
      requiresArg: true,
      describe: "How many domains, domain 0 included",
    })
    .option("personality", {
      choices: PERSONALITY_NAMES,
      default: "oxenstored" as const,
      describe: "Which xenstore server to behave like",
    })
    .option("limit", {
      type: "string",
      array: true,
      default: [],
      requiresArg: true,
      describe: `A limit of each domain, repeatable; default ${DEFAULT_LIMITS_TEXT}`,
    });
}

function dirOption<T>(argv: Argv<T>, describe: string): Argv<T & Omit<DirArguments, keyof GlobalArguments>> {
  return argv.option("dir", { type: "string", requiresArg: true, describe });
}

function optionsOf(argv: HostArguments): SimHostOptions {
  return { domains: argv.domains, personality: argv.personality, limits: parseLimits(argv.limit) };
}

function chosenDir(argv: DirArguments): string {
  const dir = argv.dir ?? process.env["XENTOOL_SIM"];
  if (dir === undefined || dir === "")
    throw new XentoolError("usage", "which simulated host? Name its directory with --dir or XENTOOL_SIM");
  return dir;
}

interface RunArguments extends HostArguments {
  readonly "--"?: readonly string[];
}

const run: CommandModule<GlobalArguments, RunArguments> = {
  command: "run",
  describe: "Run a command on a simulated host of its own",
  builder: (argv) =>
    withExamples(
      hostOptions(argv).usage(
        "$0 sim run [options] -- COMMAND [ARGUMENTS]\n\nRun a command on a simulated host of its own",
      ),
      [
        ["xentool sim run -- sh", "a shell in domain 0; with XENTOOL_DOMID=1 a command is domain 1"],
        ["xentool sim run --domains 2 -- xentool sim status", "what there is from the start"],
        ["xentool sim run --limit share-pages=64 -- ./test.sh", "a test where shared pages run out"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const command = argv["--"] ?? [];
      if (command.length === 0) throw new XentoolError("usage", "run what? xentool sim run -- COMMAND");
      const { runInHost } = await import("../src/sim/run.ts");
      const status = runInHost(command, optionsOf(argv));
      context.leaveSignals();
      return status;
    }),
};

/** The command line that runs this program again; arguments can be appended. */
function selfCommand(): string[] {
  return Bun.main.startsWith("/$bunfs/") ? [process.execPath] : [process.execPath, Bun.main];
}

interface StartArguments extends HostArguments, DirArguments {
  readonly foreground: boolean;
}

const start: CommandModule<GlobalArguments, StartArguments> = {
  command: "start",
  describe: "Start a simulated host in the background",
  builder: (argv) =>
    withExamples(
      dirOption(
        hostOptions(argv),
        "An empty directory, or one to make; default: a new one in /dev/shm",
      ).option("foreground", {
        type: "boolean",
        default: false,
        describe: "Stay, until a signal or `sim stop`",
      }),
      [
        ['eval "$(xentool sim start)"', "start one, and use it in this shell"],
        ["xentool sim start --dir /run/my-sim --domains 5", "five domains, in a directory of one's choice"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, (context) =>
      argv.foreground ? stayInForeground(argv, context) : startInBackground(argv, context),
    ),
};

async function stayInForeground(argv: StartArguments, { stop }: CommandContext): Promise<void> {
  const { serveInForeground } = await import("../src/sim/daemon.ts");
  const place = argv.dir === undefined ? {} : { dir: argv.dir };
  await serveInForeground({ ...optionsOf(argv), ...place }, stop, (ready) => printJson(ready, true));
}

async function startInBackground(argv: StartArguments, { stop }: CommandContext): Promise<void> {
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
  const ready = await startDaemon([...selfCommand(), "sim", "start", ...flags], argv.dir, stop);
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

const status: CommandModule<GlobalArguments, DirArguments> = {
  command: "status",
  describe: "Show a simulated host and what is in use there",
  builder: (argv) =>
    withExamples(dirOption(argv, "Directory of the host; default: what XENTOOL_SIM names"), [
      ["xentool sim status", "the one that XENTOOL_SIM names"],
      ["xentool sim status --json", "all of it, for a program"],
    ]),
  handler: (argv) =>
    runCommand(argv, async ({ json, timeoutMs }) => {
      const { hostStatus } = await import("../src/sim/daemon.ts");
      const answer = await hostStatus(chosenDir(argv), timeoutMs);
      if (json) printJson(answer);
      else await printStatus(answer);
    }),
};

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
    `xenstore: ${nodes} nodes, ${connections} connections, ${watches} watches, ${transactions} transactions`,
  );
  const held = usage.filter((item) => isHeld(item) && item.pid !== answer.pid);
  for (const line of describeUsages(held)) print(`  ${line}`);
}

const stop: CommandModule<GlobalArguments, DirArguments> = {
  command: "stop",
  describe: "End a simulated host and remove its directory",
  builder: (argv) =>
    withExamples(dirOption(argv, "Directory of the host; default: what XENTOOL_SIM names"), [
      ["xentool sim stop", "the one that XENTOOL_SIM names"],
      ["xentool sim stop --dir /run/my-sim", "another one"],
    ]),
  handler: (argv) =>
    runCommand(argv, async ({ json, timeoutMs }) => {
      const { stopHost } = await import("../src/sim/daemon.ts");
      const dir = chosenDir(argv);
      const outcome = await stopHost(dir, timeoutMs);
      if (json) printJson({ dir, outcome });
      else if (outcome === "was dead")
        process.stderr.write(`${dir}: its host had died; removed what it left\n`);
    }),
};

interface ExecArguments extends DirArguments {
  readonly domain: number;
  readonly "--"?: readonly string[];
}

const exec: CommandModule<GlobalArguments, ExecArguments> = {
  command: "exec <domain>",
  describe: "Run a command as a domain of a simulated host",
  builder: (argv) =>
    withExamples(
      dirOption(argv, "Directory of the host; default: what XENTOOL_SIM names")
        .positional("domain", { type: "number", demandOption: true, describe: "The domain's number" })
        .usage(
          "$0 sim exec <domain> [options] -- COMMAND [ARGUMENTS]\n\nRun a command as a domain of a simulated host",
        ),
      [
        ["xentool sim exec 1 -- xenstore-ls", "what domain 1 sees of xenstore"],
        ["xentool sim exec 2 -- ./my-vchan-server", "a program on libxenvchan, in domain 2"],
      ],
    ),
  handler: (argv) =>
    runCommand(argv, async (context) => {
      const command = argv["--"] ?? [];
      if (command.length === 0)
        throw new XentoolError("usage", "run what? xentool sim exec DOMAIN -- COMMAND");
      const { runAsDomain } = await import("../src/sim/run.ts");
      const status = runAsDomain(command, chosenDir(argv), toDomid(argv.domain, "the domain"));
      context.leaveSignals();
      return status;
    }),
};

export const simCommand = actionGroup(
  "sim",
  "A simulated Xen host, for trying things and for tests",
  [run, start, exec, status, stop],
  [
    ["xentool sim run -- sh", "a shell in domain 0 of a host that ends with it"],
    ['eval "$(xentool sim start)"', "start one in the background, and use it in this shell"],
  ],
);
