// The command lines that README.md and docs/ show are run as they stand there, on a simulated host instead of Xen. A
// block with prompts ($) is typed into a shell. Elsewhere each line of xentool's own must end with status 0, or go on
// until it is told to end. A block that cannot be run here has `<!-- not run: REASON -->` before it.
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { run } from "../support/process.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { executable, root } from "./executable.ts";

const ENDED_BY_US = 128 + 15;
const MARK = /<!-- not run: (\S[^>]*) -->\n+$/;
/** Those of docs/sim.md have a test of their own, test/interop/sim-examples.test.ts. */
const OTHERS = ["docs/sim.md"];

interface Example {
  readonly name: string;
  readonly text: string;
  readonly reason: string | undefined;
}

function examplesOf(path: string): Example[] {
  const page = readFileSync(join(root, path), "utf8");
  return [...page.matchAll(/^```(?:sh)?\n([^]*?)^```$/gm)]
    .filter(([, text = ""]) => /^(\S*[#$] )?(\w+=\S* )*xentool /m.test(text))
    .map(({ index, 1: text = "" }) => {
      const reason = MARK.exec(page.slice(0, index))?.[1];
      return { name: `${path}:${page.slice(0, index).split("\n").length}`, text, reason };
    });
}

const paths = ["README.md", ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`)];
const examples = paths
  .filter((path) => path.endsWith(".md") && !OTHERS.includes(path))
  .flatMap((path) => examplesOf(path));
const runnable = examples.filter(({ reason }) => reason === undefined);

let dir: string;
let host: SimHost;
beforeEach(async () => {
  dir = temporaryDirectory();
  for (const image of ["disk.img", "images/a.img", "images/b.img"]) {
    mkdirSync(dirname(join(dir, image)), { recursive: true });
    writeFileSync(join(dir, image), new Uint8Array(2 ** 20));
  }
  host = await SimHost.start({ domains: 8 });
});
afterEach(async () => {
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

/** `text` with places of the test's own, so that two runs at once are not in each other's way. */
function inPlace(text: string): string {
  using listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  return text
    .replaceAll(/(?<![\w.])\/(?:tmp|images|var\/lib\/prometheus\/node-exporter)(?=\/)/g, (place) =>
      place === "/images" ? `${dir}/images` : dir,
    )
    .replaceAll("127.0.0.1:9167", `127.0.0.1:${listener.port}`);
}

function environment(): Record<string, string> {
  return { PATH: `${dirname(executable)}:${process.env["PATH"]}`, HOME: dir };
}

/** A person goes on when `watch` has said that it serves. A script could have ended its host by then. */
const READ_FIRST = "2> >(tee said >&2) &\nuntil grep -q 'serving the disks' said; do sleep 0.1; done";

/** What is typed at the prompts of `text`, on a host of its own. */
async function typeIn(text: string): Promise<void> {
  const typed = text.replaceAll(/^\$ /gm, "").replaceAll(/(?<=^xentool blkback watch .*)&$/gm, READ_FIRST);
  const script = typed.includes("xentool sim run") ? typed : `xentool sim run -- bash -e\n${typed}`;
  const file = join(dir, "typed");
  writeFileSync(file, inPlace(script));
  const { status, stderr } = await run(["sh", "-c", 'cat "$1" | bash -e', "sh", file], {
    cwd: dir,
    env: environment(),
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: expect.not.stringMatching(/cannot|no such/) });
}

/** A line that has ended or printed something by the time that this resolves. */
async function startLine(line: string) {
  const child = Bun.spawn(["bash", "-c", `exec ${inPlace(line)}`], {
    cwd: dir,
    env: { ...environment(), XENTOOL_SIM: host.dir },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const first = Promise.withResolvers<void>();
  const said: string[] = [];
  const read = async (stream: ReadableStream<Uint8Array>): Promise<void> => {
    for await (const bytes of stream) {
      said.push(Buffer.from(bytes).toString());
      first.resolve();
    }
  };
  const ended = Promise.all([child.exited, read(child.stdout), read(child.stderr)]);
  await Promise.race([first.promise, ended]);
  return {
    /** Ends it, and checks that it did so well. */
    end: async (): Promise<void> => {
      child.kill("SIGTERM");
      const [status] = await ended;
      const isWell = status === 0 || status === ENDED_BY_US;
      expect({ line, isWell, said: isWell || said }).toEqual({ line, isWell: true, said: true });
    },
  };
}

/** Each line, started when the one before has ended or printed something. */
async function runLines(text: string): Promise<void> {
  const lines = text.split("\n").filter((line) => line.startsWith("xentool "));
  const running = [];
  for (const line of lines) running.push(await startLine(line.replace(/(?<=\S) {2}.*| +# .*/, "")));
  const ends = await Promise.allSettled(running.map(({ end }) => end()));
  for (const end of ends) if (end.status === "rejected") throw end.reason;
}

test("most can be run, and what cannot has a reason", () => {
  expect(runnable.length).toBeGreaterThan(examples.length / 2);
});

test.each(runnable)("$name", ({ text }) => (/^\$ /m.test(text) ? typeIn(text) : runLines(text)));
