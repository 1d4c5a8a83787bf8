// What ten guests that do their worst within their quotas cost everyone else at the xenstore server: how long
// another domain waits for a read, and how much memory the server takes. For each pattern of requests and each
// way to find conflicts. One JSON document on stdout: `lateMs` is what the machine alone adds to any wait, `busyMs` the
// longest that the server computed without looking at its clients, in CPU time.
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { constants, setPriority } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { openTransport } from "../src/xenstore/open.ts";
import { XenstoreServer } from "../src/xenstore/server/server.ts";
import type { PersonalityName } from "../src/xenstore/server/personality.ts";
import * as xs from "../src/protocol/xs-wire.ts";
import { RawClient } from "../test/unit/xenstore-harness.ts";

const GUESTS = 10;
const READER = GUESTS + 1;
const SECONDS = Number(process.env["BENCH_SECONDS"] ?? 4);
const PERSONALITIES_USED: readonly PersonalityName[] = ["oxenstored", "xenstored-4.22"];
/** Between two reads. What the machine wakes us later than that is no fault of the server. */
const PAUSE_MS = 5;
const VALUE = new Uint8Array(1900);

type Batch = readonly (readonly [type: number, payload: readonly string[] | Uint8Array, txId?: number])[];

/** One guest: batches of requests whose replies are awaited together. */
class Guest {
  readonly #client: RawClient;

  constructor(client: RawClient) {
    this.#client = client;
  }

  async all(requests: Batch): Promise<xs.XsPacket[]> {
    const packets = requests.map(([type, payload, txId = 0]) =>
      xs.encodePacket(type, 0, txId, payload instanceof Uint8Array ? payload : xs.encodeStrings(...payload)),
    );
    this.#client.send(Buffer.concat(packets));
    const replies: xs.XsPacket[] = [];
    for (const _ of requests) replies.push(await this.#client.nextReply());
    this.#client.takeEvents();
    return replies;
  }

  async begin(): Promise<number> {
    const [reply] = await this.all([[xs.XS_TRANSACTION_START, [""]]]);
    return Number.parseInt(xs.decodeText(reply?.payload ?? new Uint8Array()), 10);
  }

  end(id: number, verdict: "T" | "F"): Promise<unknown> {
    return this.all([[xs.XS_TRANSACTION_END, [verdict], id]]);
  }
}

const write = (path: string): Uint8Array => xs.encodePathAndValue(path, VALUE);
const numbers = (count: number): number[] => Array.from({ length: count }, (_, index) => index);
const deep = (top: string, levels: number): string => `data/${top}${"/a".repeat(levels - 1)}`;
const LEVELS = 480;

const madeAndRemoved = (id: number): Batch => [
  [xs.XS_MKDIR, [deep("top", LEVELS)], id],
  [xs.XS_RM, ["data/top"], id],
];
const again = (times: number, batch: Batch): Batch => numbers(times).flatMap(() => batch);

/** What a guest does again and again. */
const PATTERNS: Readonly<Record<string, (guest: Guest) => Promise<void>>> = {
  async "make a deep path and remove it, in a transaction that is done again"(guest) {
    const id = await guest.begin();
    await guest.all(again(512, madeAndRemoved(id)));
    await guest.all([[xs.XS_WRITE, write("data/other")]]);
    await guest.end(id, "T");
  },
  async "the same in ten transactions that stay open"(guest) {
    const ids: number[] = [];
    for (const _ of numbers(10)) ids.push(await guest.begin());
    for (const id of ids) await guest.all(again(512, madeAndRemoved(id)));
    for (const id of ids) await guest.end(id, "T");
  },
  async "large values in ten transactions"(guest) {
    const ids: number[] = [];
    for (const _ of numbers(10)) ids.push(await guest.begin());
    for (const id of ids)
      await guest.all(numbers(900).map((index) => [xs.XS_WRITE, write(`data/${index % 30}/${index}`), id]));
    for (const id of ids) await guest.end(id, "T");
  },
  async "every value replaced between the starts of ten transactions"(guest) {
    const ids: number[] = [];
    for (const _ of numbers(10)) {
      const id = await guest.begin();
      ids.push(id);
      await guest.all([[xs.XS_READ, ["data"], id]]);
      await guest.all(numbers(900).map((index) => [xs.XS_WRITE, write(`data/${index % 30}/${index}`)]));
    }
    for (const id of ids) await guest.end(id, "F");
  },
  async "removals below a hundred watches on the way"(guest) {
    await guest.all(numbers(100).map((index) => [xs.XS_WATCH, [deep("top", 1 + index * 4), "t"]]));
    const id = await guest.begin();
    await guest.all(again(20, madeAndRemoved(id)));
    await guest.all(numbers(900).map((index) => [xs.XS_WRITE, [deep("top", 1 + (index % 400)), ""], id]));
    await guest.end(id, "T");
    await guest.all([[xs.XS_RM, ["data/top"]]]);
    await guest.all([[xs.XS_RESET_WATCHES, [""]]]);
  },
  async "one directory of many nodes, changed in transactions that meet"(guest) {
    await guest.all(numbers(900).map((index) => [xs.XS_MKDIR, [`data/d/${"name".repeat(10)}${index}`]]));
    for (const _ of numbers(20)) {
      const id = await guest.begin();
      await guest.all(numbers(50).map((index) => [xs.XS_DIRECTORY, ["data/d"], index % 2 === 0 ? 0 : id]));
      await guest.all([[xs.XS_MKDIR, ["data/d/x"], id]]);
      await guest.all([[xs.XS_MKDIR, ["data/d/y"]]]);
      await guest.end(id, "T");
      await guest.all([[xs.XS_RM, ["data/d/x"]]]);
      await guest.all([[xs.XS_RM, ["data/d/y"]]]);
    }
  },
  async "deep paths that are not there, read in ten transactions"(guest) {
    const ids: number[] = [];
    for (const _ of numbers(10)) ids.push(await guest.begin());
    for (const id of ids)
      await guest.all(numbers(1000).map((index) => [xs.XS_READ, [deep(`n${index}`, LEVELS)], id]));
    for (const id of ids) await guest.end(id, "T");
  },
};

/** Before what else runs on this machine, where we may: its wait for a processor is not the server's doing. */
function hurry(): void {
  try {
    setPriority(constants.priority.PRIORITY_HIGHEST);
  } catch {
    console.error("xenstore: without priority, so other programs are in the way");
  }
}

async function serve(dir: string, personality: PersonalityName): Promise<void> {
  hurry();
  const server = new XenstoreServer({ personality });
  for (let domid = 1; domid <= READER; domid++) {
    server.createDomain(domid, `domain-${domid}`);
    await server.listen(join(dir, String(domid)), domid);
  }
  let longestMs = 0;
  let before = process.cpuUsage();
  setInterval(() => {
    const { user, system } = process.cpuUsage(before);
    before = process.cpuUsage();
    longestMs = Math.max(longestMs, (user + system) / 1000);
  }, 1);
  console.log("ready");
  await Bun.stdin.text(); // until our parent has seen enough
  console.log(longestMs);
  process.exit(0);
}

async function connect(dir: string, domid: number): Promise<RawClient> {
  return new RawClient(await openTransport({ kind: "socket", path: join(dir, String(domid)) }, 10_000));
}

/** Ten guests of one pattern until killed. */
async function attack(dir: string, pattern: string): Promise<void> {
  setPriority(constants.priority.PRIORITY_NORMAL);
  const act = PATTERNS[pattern];
  if (act === undefined) throw new Error(`no pattern is called ${pattern}`);
  console.log("ready");
  const guests = await Promise.all(numbers(GUESTS).map(async (at) => new Guest(await connect(dir, at + 1))));
  await Promise.all(
    guests.map(async (guest) => {
      for (;;) await act(guest);
    }),
  );
}

async function start(...args: readonly string[]) {
  const self = fileURLToPath(import.meta.url);
  const child = Bun.spawn([process.execPath, self, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const output = child.stdout.getReader();
  const line = async (): Promise<string> => new TextDecoder().decode((await output.read()).value);
  await line();
  return { child, line };
}

function memoryMiB(pid: number): number {
  const kib = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Math.round(Number(kib) / 1024);
}

async function measure(personality: PersonalityName, pattern: string) {
  const dir = mkdtempSync("/tmp/xentool-bench-");
  const server = await start("serve", dir, personality);
  const reader = await connect(dir, READER);
  const idleMiB = memoryMiB(server.child.pid);
  const attackers = await start("attack", dir, pattern);
  const waits: number[] = [];
  const late: number[] = [];
  for (const end = performance.now() + SECONDS * 1000; performance.now() < end;) {
    const asked = performance.now();
    await reader.ask(xs.XS_READ, ["name"]);
    const answered = performance.now();
    waits.push(answered - asked);
    await Bun.sleep(PAUSE_MS);
    late.push(performance.now() - answered - PAUSE_MS);
  }
  attackers.child.kill("SIGKILL");
  await attackers.child.exited;
  const serverMiB = memoryMiB(server.child.pid);
  reader.close();
  await server.child.stdin.end();
  const busyMs = Math.round(Number(await server.line()));
  await server.child.exited;
  rmSync(dir, { recursive: true });
  const times = { waitMs: summary(waits), lateMs: summary(late), busyMs };
  const result = { personality, pattern, ...times, serverMiB, idleMiB };
  console.error(`xenstore: ${JSON.stringify(result)}`);
  return result;
}

function summary(times: readonly number[]) {
  const ordered = times.toSorted((a, b) => a - b);
  const at = (share: number): number =>
    Math.round((ordered[Math.floor((ordered.length - 1) * share)] ?? 0) * 10) / 10;
  return { median: at(0.5), p99: at(0.99), max: at(1) };
}

const [role, dir = "", what = ""] = Bun.argv.slice(2);
if (role === "serve") await serve(dir, what as PersonalityName);
else if (role === "attack") await attack(dir, what);
else {
  hurry();
  const results = [];
  for (const personality of PERSONALITIES_USED)
    for (const pattern of Object.keys(PATTERNS)) results.push(await measure(personality, pattern));
  process.stdout.write(`${JSON.stringify({ guests: GUESTS, seconds: SECONDS, results })}\n`);
}
