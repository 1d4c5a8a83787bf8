// The same fault has the same status and the same words, whichever command meets it: the table of README.md. And what
// domains are called: by number or by name.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { runXentool } from "./executable.ts";

const USAGE = 2;
const ENVIRONMENT = 3;
const IO = 5;

let host: SimHost;
let dir: string;
let env: Record<string, string>;

beforeAll(async () => {
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk.img"), new Uint8Array(2 ** 20));
  host = await SimHost.start({ domains: 4 });
  env = { XENTOOL_SIM: host.dir };
  using dom0 = host.platform(0);
  using xenstore = await Xenstore.connect(dom0);
  for (const [domid, name] of [
    [1, "web"],
    [2, "twin"],
    [3, "twin"],
  ] as const)
    await xenstore.write(`/local/domain/${domid}/name`, name);
});

afterAll(async () => {
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

function run(line: string) {
  return runXentool(line.split(" "), { env, cwd: dir });
}

/** Every command that takes a domain, up to the domain itself, which is `%`. */
const OF_A_DOMAIN = [
  "blkback serve disk.img --domid % --vdev xvdb",
  "blkback create --domid % --vdev xvdb",
  "blkback close --domid % --vdev xvdb",
  "blkback force-close --domid % --vdev xvdb",
  "blkback resize --domid % --vdev xvdb",
  "blkback limit --domid % --vdev xvdb",
  "blkback stats --domid %",
  "vchan listen % files",
  "vchan connect % files",
  "vchan bench listen % files",
  "vchan bench connect % files",
  "xsring inspect --domid %",
  "xsring close --domid %",
  "xsring trace --domid %",
];
const BY_NAME = [...OF_A_DOMAIN, "blkback destroy --domid % --vdev xvdb", "sim exec % -- true"];

/** What each of `lines` came to, all at once. */
async function runAll(lines: readonly string[], domain: string, added = env) {
  const outcomes = lines.map(async (line) => {
    const words = line.replace("%", domain).split(" ");
    return [line, await runXentool(words, { env: added, cwd: dir })] as const;
  });
  return Object.fromEntries(await Promise.all(outcomes));
}

/** That each of `lines` failed with this. */
function each(lines: readonly string[], status: number, stderr: string | RegExp) {
  const words = typeof stderr === "string" ? stderr : (expect.stringMatching(stderr) as string);
  return Object.fromEntries(lines.map((line) => [line, { status, stdout: "", stderr: words }]));
}

test("a domain that does not exist", async () => {
  const stderr = "xentool: there is no domain 9\n";
  expect(await runAll(OF_A_DOMAIN, "9")).toEqual(each(OF_A_DOMAIN, ENVIRONMENT, stderr));
});

test("a name that no domain has", async () => {
  const stderr = 'xentool: there is no domain called "mail"\n';
  expect(await runAll(BY_NAME, "mail")).toEqual(each(BY_NAME, ENVIRONMENT, stderr));
});

test("a name that two domains have", async () => {
  const stderr = 'xentool: domains 2 and 3 are both called "twin": use the number\n';
  expect(await runAll(BY_NAME, "twin")).toEqual(each(BY_NAME, ENVIRONMENT, stderr));
});

test("a number that no domain can have, before anything is looked for", async () => {
  const words = /^xentool: (--domid|DOMID|DOMAIN) must be a whole number from 0 to 32751, not 32752\n$/;
  const outcomes = await runAll(BY_NAME, "32752", { XENTOOL_SIM: join(dir, "none") });
  expect(outcomes).toEqual(each(BY_NAME, USAGE, words));
});

test("a domain's name stands for its number", async () => {
  const created = await run("blkback create --domid web --vdev xvdb --json");
  expect(JSON.parse(created.stdout)).toEqual({ domid: 1, vdev: "xvdb", kind: "qdisk", done: "created" });
  expect(await run("blkback limit --domid web --vdev xvdb")).toMatchObject({ status: 0 });
  expect(await run("blkback destroy --domid web --vdev xvdb")).toMatchObject({ status: 0 });
  expect((await run("xsring inspect --domid web")).stdout).toContain("domain 1");
  expect(await run("sim exec web -- printenv XENTOOL_DOMID")).toMatchObject({ status: 0, stdout: "1\n" });
  expect((await run("vchan connect web files")).stderr).toContain("/local/domain/1/data/vchan/0/files");
  expect((await run("blkback stats --domid web")).stdout).toBe("no disk of domain 1 is served here\n");
});

test("a guest that may not look others up is told to use the number", async () => {
  const args = ["vchan", "connect", "web", "files"];
  const { status, stderr } = await runXentool(args, { env: { ...env, XENTOOL_DOMID: "2" } });
  expect(stderr).toStartWith(
    'xentool: cannot look up "web": this domain may not list the others; use its number',
  );
  expect(status).toBe(ENVIRONMENT);
});

test("a disk that does not exist", async () => {
  const lines = ["close", "force-close", "resize", "limit"].map(
    (action) => `blkback ${action} --domid 1 --vdev xvdb`,
  );
  const stderr = "xentool: there is no xvdb of domain 1 with a backend of kind qdisk\n";
  expect(await runAll(lines, "")).toEqual(each(lines, ENVIRONMENT, stderr));
  const nothingToDo = await run("blkback destroy --domid 1 --vdev xvdb");
  expect(nothingToDo).toEqual({ status: 0, stdout: "", stderr: "" });
});

test("a disk that exists already: blkback create", async () => {
  const line = "blkback create --domid 1 --vdev xvdb";
  await run(line);
  const stderr = "xentool: xvdb of domain 1 exists already\n";
  expect(await run(line)).toEqual({ status: ENVIRONMENT, stdout: "", stderr });
  await run("blkback destroy --domid 1 --vdev xvdb");
});

test("a file that does not exist", async () => {
  const lines = [
    "blkback serve none --domid 1 --vdev xvdb",
    "xsring inspect --file none",
    "xsring trace --read none",
  ];
  const words = /^xentool: cannot (open|read) \S*none: ENOENT: no such file or directory\n$/;
  expect(await runAll(lines, "")).toEqual(each(lines, IO, words));
});

test("a simulated host that does not run", async () => {
  const none = join(dir, "none");
  const lines = [...BY_NAME, "blkback list", "blkfront bench --vdev xvdb", "sim status", "sim stop", "top"];
  const stderr = `xentool: no simulated host runs in ${none}: start one with \`xentool sim start\`\n`;
  for (const domain of ["1", "web"])
    expect(await runAll(lines, domain, { XENTOOL_SIM: none })).toEqual(each(lines, ENVIRONMENT, stderr));
});
