// The examples of docs/vchan.md: git over a vchan between two domains, with its own transport and as a local
// socket, and the keeper of a service that runs a command for each client.
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { Readable } from "node:stream";
import { noise, VchanCli } from "./vchan-cli-harness.ts";

const TIMEOUT_MS = 30_000;
const GIT_ENV = {
  GIT_CONFIG_GLOBAL: "/dev/null",
  GIT_CONFIG_SYSTEM: "/dev/null",
  GIT_AUTHOR_NAME: "a",
  GIT_AUTHOR_EMAIL: "a@example.org",
  GIT_COMMITTER_NAME: "a",
  GIT_COMMITTER_EMAIL: "a@example.org",
};

let cli: VchanCli;
let repository: string;

async function git(domid: number, ...args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await cli.spawn(domid, ["git", ...args], GIT_ENV).finished;
  if (status !== 0) throw new Error(`git ${args.join(" ")}: ${stderr}`);
  return stdout.toString().trim();
}

beforeAll(async () => {
  cli = await VchanCli.start();
  repository = join(cli.dir, "repository");
  await git(0, "init", "-q", "-b", "main", repository);
  writeFileSync(join(repository, "large"), noise(5, 3_000_000));
  await git(0, "-C", repository, "add", "large");
  await git(0, "-C", repository, "commit", "-q", "-m", "a large file");
});
afterAll(async () => {
  await cli[Symbol.asyncDispose]();
});

test(
  "git clone, commit and push between two domains, over git's ext transport",
  async () => {
    const upload = cli.run(1, "listen", "2", "git-upload", "--keep", "--", "git", "upload-pack", repository);
    const receive = cli.run(1, "listen", "2", "git-receive", "--", "git", "receive-pack", repository);
    const remote = (name: string): string => `ext::${cli.argv("connect", "1", name, "--wait").join(" ")}`;
    const copy = join(cli.dir, "copy");
    await git(2, "-c", "protocol.ext.allow=always", "clone", "-q", remote("git-upload"), copy);
    expect(readFileSync(join(copy, "large")).equals(noise(5, 3_000_000))).toBe(true);
    writeFileSync(join(copy, "small"), "from domain 2\n");
    await git(2, "-C", copy, "add", "small");
    await git(2, "-C", copy, "commit", "-q", "-m", "back again");
    await git(
      2,
      "-C",
      copy,
      "-c",
      "protocol.ext.allow=always",
      "push",
      "-q",
      remote("git-receive"),
      "main:back",
    );
    expect(await git(1, "-C", repository, "rev-parse", "back")).toBe(
      await git(2, "-C", copy, "rev-parse", "main"),
    );
    expect((await receive.finished).status).toBe(0);
    upload.child.kill("SIGTERM");
    expect((await upload.finished).status).toBe(143);
  },
  TIMEOUT_MS,
);

test(
  "a service of one domain as a socket of another, client after client",
  async () => {
    const front = join(cli.dir, "date.sock");
    const server = cli.run(0, "listen", "1", "upper", "--keep", "--", "tr", "a-z", "A-Z");
    const client = cli.run(1, "connect", "0", "upper", "--keep", "--wait", "--unix", front);
    while (!existsSync(front)) await Bun.sleep(10);
    for (const word of ["one", "two", "three"]) {
      const socket = connect(front);
      socket.end(word);
      expect(await new Response(Readable.toWeb(socket) as ReadableStream).text()).toBe(word.toUpperCase());
    }
    client.child.kill("SIGTERM");
    server.child.kill("SIGTERM");
    expect([(await client.finished).status, (await server.finished).status]).toEqual([143, 143]);
  },
  TIMEOUT_MS,
);
