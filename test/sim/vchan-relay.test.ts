// xentool vchan as a relay, between processes on a simulated host: streams both ways, the end of one stream,
// sockets, commands, one client after another, and what remains when somebody is killed.
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { createServer, connect as connectSocket, type AddressInfo, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { checksum, noise, VchanCli, withoutWaits, type Running } from "./vchan-cli-harness.ts";
import { chosenSeed } from "../support/random.ts";

const seed = chosenSeed();
const TIMEOUT_MS = 30_000;

let cli: VchanCli;
beforeEach(async () => {
  cli = await VchanCli.start();
});
afterEach(async () => {
  await cli[Symbol.asyncDispose]();
});

/** The whole conversation of one socket: sends `bytes`, ends, and gives what came. */
function converse(socket: Socket, bytes: Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    socket.on("data", (chunk: Buffer) => chunks.push(chunk));
    socket.on("end", () => resolve(Buffer.concat(chunks)));
    socket.on("error", reject);
    socket.end(bytes);
  });
}

/** A service that sends back what it got, and ends when its client has. */
async function echoServer(where: string | number): Promise<Server> {
  const server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket));
  await new Promise<void>((resolve) => {
    if (typeof where === "string") server.listen(where, resolve);
    else server.listen(where, "127.0.0.1", resolve);
  });
  return server;
}

describe("standard input and output", () => {
  test(
    "megabytes both ways at once arrive unchanged, and both ends say so, seed " + seed,
    async () => {
      const down = noise(seed, 6_000_001);
      const up = noise(seed + 1, 5_000_003);
      const server = cli.run(0, "listen", "1", "t", "--json");
      const client = cli.run(1, "connect", "0", "t", "--wait", "--json");
      await Promise.all([server.feed(down), client.feed(up)]);
      const [served, connected] = await Promise.all([server.finished, client.finished]);
      expect([served.status, connected.status]).toEqual([0, 0]);
      expect(checksum(served.stdout)).toBe(checksum(up));
      expect(checksum(connected.stdout)).toBe(checksum(down));
      expect(JSON.parse(served.stderr)).toMatchObject({
        role: "server",
        domid: 1,
        end: "done",
        bytesSent: down.length,
        bytesReceived: up.length,
        bytesUnread: 0,
        bytesUndelivered: 0,
      });
      expect(JSON.parse(connected.stderr)).toMatchObject({ role: "client", domid: 0, end: "done" });
    },
    TIMEOUT_MS,
  );

  test(
    "the smallest rings and the largest",
    async () => {
      for (const size of ["0", "1048576"]) {
        const bytes = noise(seed, 300_000);
        const server = cli.run(2, "listen", "1", "t", "--read-size", size, "--write-size", size);
        const client = cli.run(1, "connect", "2", "t", "--wait");
        await Promise.all([server.feed(bytes), client.feed(bytes)]);
        const both = await Promise.all([server.finished, client.finished]);
        expect(both.map(({ status, stdout }) => [status, checksum(stdout)])).toEqual([
          [0, checksum(bytes)],
          [0, checksum(bytes)],
        ]);
      }
    },
    TIMEOUT_MS,
  );

  test(
    "input that ends does not cut the answer off: a command that answers after the end of its input",
    async () => {
      const bytes = noise(seed, 1_234_567);
      const server = cli.run(0, "listen", "1", "sum", "--json", "--", "sha256sum");
      const client = cli.run(1, "connect", "0", "sum", "--wait");
      await client.feed(bytes);
      const answer = await client.finished;
      const sum = new Bun.CryptoHasher("sha256").update(bytes).digest("hex");
      expect([answer.status, answer.stdout.toString()]).toEqual([0, `${sum}  -\n`]);
      const served = await server.finished;
      expect(JSON.parse(served.stdout.toString())).toMatchObject({ commandStatus: 0, end: "done" });
    },
    TIMEOUT_MS,
  );

  test(
    "a command that fails gives xentool its status, at either end; one that must be ended does not",
    async () => {
      const server = cli.run(0, "listen", "1", "status", "--", "sh", "-c", "cat >/dev/null; exit 3");
      const client = cli.run(1, "connect", "0", "status", "--wait", "--", "sh", "-c", "echo hello; exit 7");
      const both = await Promise.all([server.finished, client.finished]);
      expect(both.map(({ status }) => status)).toEqual([3, 7]);

      const ended = cli.run(
        0,
        "listen",
        "1",
        "ended",
        "--json",
        "--",
        "sh",
        "-c",
        "exec >&-; exec sleep 100",
      );
      const peer = cli.run(1, "connect", "0", "ended", "--wait");
      await peer.feed(noise(seed, 100));
      expect((await peer.finished).status).toBe(0);
      const { status, stdout } = await ended.finished;
      expect([status, JSON.parse(stdout.toString()).commandStatus]).toEqual([0, 143]);
    },
    TIMEOUT_MS,
  );

  test(
    "a consumer that stops taking stops the producer, and nothing is lost when it goes on",
    async () => {
      const bytes = noise(seed, 2_000_000);
      const gate = join(cli.dir, "gate");
      const server = cli.run(
        0,
        "listen",
        "1",
        "t",
        "--json",
        "--",
        "sh",
        "-c",
        `mkfifo ${gate}; cat ${gate}; cat`,
      );
      const client = cli.run(1, "connect", "0", "t", "--wait");
      // The shell reads nothing before the gate opens; far more is fed than rings and pipes hold.
      const feeding = client.feed(bytes);
      const opener = cli.spawn(0, ["sh", "-c", `until [ -p ${gate} ]; do sleep 0.05; done; echo > ${gate}`]);
      await opener.finished;
      await feeding;
      const { status, stdout } = await client.finished;
      expect([status, checksum(stdout)]).toEqual([0, checksum(Buffer.concat([Buffer.from("\n"), bytes]))]);
      expect((await server.finished).status).toBe(0);
    },
    TIMEOUT_MS,
  );

  /** Domain 0 serves one client after another through a shell's line; each of domain 1's sends one of the texts. */
  async function keepThrough(line: string, texts: readonly string[]): Promise<[statuses: number[], Running]> {
    const server = cli.spawn(0, ["bash", "-c", line, "bash", ...cli.argv("listen", "1", "t", "--keep")]);
    void server.child.stdin.end();
    const statuses: number[] = [];
    for (const text of texts) {
      const client = cli.run(1, "connect", "0", "t", "--wait");
      await client.feed(text);
      statuses.push((await client.finished).status);
    }
    return [statuses, server];
  }

  test(
    "with --keep one client's data follows the other's, into a file and a pipe",
    async () => {
      const texts = ["first ", "second"];
      const out = join(cli.dir, "out");
      const [toFile, server] = await keepThrough('exec "$@" >out', texts);
      server.child.kill("SIGTERM");
      expect((await server.finished).status).toBe(143);
      expect([toFile, readFileSync(out, "utf8")]).toEqual([[0, 0], texts.join("")]);
      const [toPipe, piped] = await keepThrough('exec "$@" > >(exec cat)', texts);
      await piped.received(texts.join("").length);
      piped.child.kill("SIGTERM");
      const { status, stdout } = await piped.finished;
      expect([toPipe, status, stdout.toString()]).toEqual([[0, 0], 143, texts.join("")]);
    },
    2 * TIMEOUT_MS, // six programs start
  );

  test(
    "with --keep a server whose output nobody reads any more ends",
    async () => {
      const [statuses, server] = await keepThrough('"$@" | :; exit ${PIPESTATUS[0]}', ["unwanted"]);
      const { status, stderr } = await server.finished;
      expect([statuses, status]).toEqual([[5], 5]);
      expect(withoutWaits(stderr)).toMatch(/^xentool: (nobody reads|.* did not take the last 8 bytes)/);
    },
    TIMEOUT_MS,
  );

  test(
    "a reader that comes late and leaves early ends a relay through an echo, which waits for it as well",
    async () => {
      const server = cli.run(0, "listen", "1", "echo", "--", "cat");
      await cli.published(0, 1, "echo");
      // All pipes and rings are full when the reader comes.
      const line = 'yes | "$@" | { sleep 1; head -1; }; exit ${PIPESTATUS[1]}';
      const client = cli.spawn(1, ["bash", "-c", line, "bash", ...cli.argv("connect", "0", "echo")]);
      const { status, stdout, stderr } = await client.finished;
      expect([status, stdout.toString()]).toEqual([5, "y\n"]);
      expect(stderr).toContain("standard input and output did not take the last 65536 bytes");
      expect((await server.finished).status).toBe(5);
    },
    TIMEOUT_MS,
  );
});

describe("sockets", () => {
  test(
    "a unix socket's service behind the server, a unix socket's clients at the client, one after another",
    async () => {
      const behind = join(cli.dir, "service");
      const before = join(cli.dir, "front");
      const service = await echoServer(behind);
      const server = cli.run(0, "listen", "1", "echo", "--keep", "--unix", behind);
      const client = cli.run(1, "connect", "0", "echo", "--keep", "--wait", "--unix", before);
      await cli.published(0, 1, "echo");
      while (!existsSync(before)) await Bun.sleep(10);
      for (let round = 0; round < 3; round++) {
        const bytes = noise(seed + round, 400_000);
        expect(checksum(await converse(connectSocket(before), bytes))).toBe(checksum(bytes));
      }
      client.child.kill("SIGTERM");
      server.child.kill("SIGTERM");
      const ends = await Promise.all([client.finished, server.finished]);
      expect(ends.map(({ status, stderr }) => [status, withoutWaits(stderr)])).toEqual([
        [143, ""],
        [143, ""],
      ]);
      expect(existsSync(before)).toBe(false);
      await new Promise((resolve) => service.close(resolve));
    },
    TIMEOUT_MS,
  );

  test(
    "a TCP service",
    async () => {
      const service = await echoServer(0);
      const { port } = service.address() as AddressInfo;
      const server = cli.run(0, "listen", "1", "echo", "--tcp", `127.0.0.1:${port}`);
      const client = cli.run(1, "connect", "0", "echo", "--wait");
      const bytes = noise(seed, 700_000);
      await client.feed(bytes);
      const { status, stdout } = await client.finished;
      expect([status, checksum(stdout)]).toEqual([0, checksum(bytes)]);
      expect((await server.finished).status).toBe(0);
      await new Promise((resolve) => service.close(resolve));
    },
    TIMEOUT_MS,
  );

  test(
    "a service that is not there fails the one session, and the next client is served",
    async () => {
      const behind = join(cli.dir, "service");
      const server = cli.run(0, "listen", "1", "echo", "--keep", "--unix", behind);
      const early = cli.run(1, "connect", "0", "echo", "--wait");
      await early.feed("", true);
      expect((await early.finished).status).not.toBe(0);
      const service = await echoServer(behind);
      const late = cli.run(1, "connect", "0", "echo", "--wait");
      await late.feed("now");
      expect((await late.finished).stdout.toString()).toBe("now");
      server.child.kill("SIGTERM");
      expect((await server.finished).stderr).toContain("ENOENT");
      await new Promise((resolve) => service.close(resolve));
    },
    TIMEOUT_MS,
  );
});

describe("the end of a peer", () => {
  for (const victim of ["server", "client"] as const)
    test(
      `kill -9 of the ${victim} in mid-stream: the other ends at once with what had come, seed ${seed}`,
      async () => {
        for (let round = 0; round < 3; round++) {
          const server = cli.run(0, "listen", "1", "t", "--json");
          const client = cli.run(1, "connect", "0", "t", "--wait", "--json");
          const bytes = noise(seed + round, 8_000_000);
          const [dying, other] = victim === "server" ? [server, client] : [client, server];
          // Its input never ends, so all the other can see is that it dies in the middle.
          const length = 1 + ((seed * (round + 7)) % 3_000_000);
          const feeding = dying.feed(bytes, true).catch(() => {});
          await other.received(length);
          dying.child.kill(9);
          const killedAt = performance.now();
          const survivor = await other.finished;
          // Before silence would have ended it, which takes 5 s.
          expect(performance.now() - killedAt).toBeLessThan(4000);
          expect(survivor.status).toBe(5);
          expect(survivor.stderr).toContain("vanished in the middle");
          await feeding;
          const came = survivor.stdout;
          expect(came.length).toBeGreaterThanOrEqual(length);
          expect(checksum(came)).toBe(checksum(bytes.subarray(0, came.length)));
        }
      },
      TIMEOUT_MS,
    );

  test(
    "a server's domain that is destroyed, and a client's",
    async () => {
      for (const victim of [1, 2]) {
        if (victim === 2) await cli.host.createDomain(1);
        const server = cli.run(1, "listen", "2", "t");
        const client = cli.run(2, "connect", "1", "t", "--wait");
        const [dying, other] = victim === 1 ? [server, client] : [client, server];
        await Promise.all([dying.feed("hello", true), other.feed("hello", true)]);
        await Promise.all([dying.received(5), other.received(5)]);
        // The processes of a destroyed domain do not get to do anything any more.
        dying.child.kill("SIGSTOP");
        await cli.host.destroyDomain(victim);
        const survivor = await other.finished;
        expect(survivor.status).toBe(5);
        expect(survivor.stderr).toContain("vanished");
        for (const { child } of [server, client]) child.kill(9);
        await Promise.all([server.finished, client.finished]);
      }
    },
    TIMEOUT_MS,
  );

  test(
    "SIGTERM delivers what is under way, tells the peer, takes the keys back and exits with 143",
    async () => {
      const server = cli.run(0, "listen", "1", "t", "--json");
      const client = cli.run(1, "connect", "0", "t", "--wait");
      await Promise.all([client.feed("before", true), server.feed("answer", true)]);
      await Promise.all([client.received(6), server.received(6)]);
      server.child.kill("SIGTERM");
      const served = await server.finished;
      expect(served.status).toBe(143);
      expect(JSON.parse(served.stderr)).toMatchObject({ end: "stopped" });
      void client.child.stdin.end();
      const connected = await client.finished;
      expect([connected.status, withoutWaits(connected.stderr)]).toEqual([
        5,
        "xentool: domain 0 stopped before the end of its stream\n",
      ]);
      await cli.published(0, 1, "t", false);
    },
    TIMEOUT_MS,
  );

  test(
    "a reader that goes away ends the relay, which says how much was not taken",
    async () => {
      const server = cli.run(0, "listen", "1", "t");
      const client = cli.spawn(1, [
        "sh",
        "-c",
        `${cli.argv("connect", "0", "t", "--wait").join(" ")} | head -c 10`,
      ]);
      const feeding = server.feed(noise(seed, 3_000_000)).catch(() => {});
      const { stdout } = await client.finished;
      expect(stdout.length).toBe(10);
      const { status, stderr } = await server.finished;
      expect(status).toBe(5);
      expect(stderr).toMatch(/closed the vchan with [0-9]+ bytes unread/);
      await feeding;
    },
    TIMEOUT_MS,
  );
});

test(
  "hasty clients are all served, but not faster than the pace",
  async () => {
    const server = cli.run(0, "listen", "1", "now", "--keep", "--", "date", "+%s%3N");
    const clients = Array.from({ length: 4 }, () => cli.run(1, "connect", "0", "now", "--wait"));
    await Promise.all(clients.map((client) => client.feed("")));
    const served = await Promise.all(clients.map(({ finished }) => finished));
    expect(served.map(({ status }) => status)).toEqual([0, 0, 0, 0]);
    const times = served.map(({ stdout }) => Number(stdout)).sort((a, b) => a - b);
    for (let i = 1; i < times.length; i++) expect(times[i] - times[i - 1]).toBeGreaterThanOrEqual(95);
    server.child.kill("SIGTERM");
    const { status, stderr } = await server.finished;
    expect([status, stderr]).toEqual([
      143,
      "xentool: waiting for domain 1 at /local/domain/0/data/vchan/1/now\n",
    ]);
  },
  TIMEOUT_MS,
);

test(
  "an idle relay uses no processor time",
  async () => {
    const server = cli.run(0, "listen", "1", "t");
    const client = cli.run(1, "connect", "0", "t", "--wait");
    await Promise.all([client.feed("x", true), server.feed("x", true)]);
    await Promise.all([client.received(1), server.received(1)]);
    const ticks = (pid: number): number => {
      const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
        .replace(/^.*\) /, "")
        .split(" ");
      return Number(fields[11]) + Number(fields[12]);
    };
    // What was allocated at the start is collected once, some time after it: rest is what follows.
    for (const pid of [server.pid, client.pid]) {
      const used: number[] = [];
      do {
        const before = ticks(pid);
        await Bun.sleep(1000);
        used.push(ticks(pid) - before); // of 100
      } while ((used.at(-1) as number) > 1 && used.length < 10);
      expect(used.at(-1)).toBeLessThan(2);
    }
    void server.child.stdin.end();
    void client.child.stdin.end();
    expect((await server.finished).stdout.toString()).toBe("x");
    expect((await client.finished).stdout.toString()).toBe("x");
  },
  TIMEOUT_MS,
);
