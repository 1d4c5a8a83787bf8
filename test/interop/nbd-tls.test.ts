// NBD by TLS against other people's servers: whoever is not the server that was named gets no byte of the disk.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { spawnWorker } from "../../cmd/spawn-worker.ts";
import { SecureLine } from "../../src/blkback/image/secure-line.ts";
import { DEFAULT_KIND } from "../../src/blkback/address.ts";
import { describeError } from "../../src/core/errors.ts";
import { toDomid } from "../../src/core/types.ts";
import { IO_READ, IO_WRITE } from "../../src/native/reactor.ts";
import { encodeGreeting, encodeOptionReply } from "../../src/protocol/nbd.ts";
import { makeCertificates } from "../support/certificates.ts";
import { openDescriptors } from "../support/descriptors.ts";
import { EXPORT_BYTES, nbdkit, nbdServer, qemuNbd, type NbdServer } from "../support/nbd-servers.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { NbdExport } from "./nbd-export.ts";

const FILE = (dir: string): readonly string[] => ["file", join(dir, "disk.img")];
const DISK = { backend: toDomid(0), frontend: toDomid(1), kind: DEFAULT_KIND, devid: 51728 };

let dir: string;
let ours: string;
let others: string;
let withoutClient: string;
let line: SecureLine;

beforeAll(async () => {
  dir = temporaryDirectory();
  [ours, others, withoutClient] = ["ours", "others", "no-client"].map((name) => join(dir, name)) as [
    string,
    string,
    string,
  ];
  for (const it of [ours, others, withoutClient]) mkdirSync(it);
  await Promise.all([ours, others].map((it) => makeCertificates(it, "storage")));
  await Bun.write(join(withoutClient, "ca-cert.pem"), Bun.file(join(ours, "ca-cert.pem")));
});
afterAll(() => removeDirectory(dir));
beforeEach(() => {
  line = new SecureLine(dir, DISK, spawnWorker);
});
afterEach(async () => {
  await line.close();
  expect(existsSync(join(dir, "1-51728.tls"))).toBe(false);
});

/** The server's URI for TLS. */
function secure({ uri }: NbdServer, name = "storage", certificates = ours): string {
  return `${uri.replace("nbd+unix", "nbds+unix")}&tls-hostname=${name}&tls-certificates=${certificates}`;
}

const strictly = (...options: readonly string[]): Promise<NbdServer> =>
  nbdkit([], FILE, "--tls=require", `--tls-certificates=${ours}`, ...options);

/** That nobody listens at now. */
function freePort(): number {
  const listener = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  listener.stop(true);
  return listener.port;
}

const CREDENTIALS = "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir=";

describe.each([
  ["nbdkit", () => strictly("--tls-verify-peer")],
  ["qemu-nbd", () => qemuNbd("--object", CREDENTIALS + ours, "--tls-creds", "tls")],
  ["nbd-server", () => nbdServer(ours)],
] as const)("%s", (_, start) => {
  test("bytes, on several connections", async () => {
    await using server = await start();
    using disk = await NbdExport.open(secure(server), 4, false, line);
    expect(disk.target.info.sizeBytes).toBe(EXPORT_BYTES);
    const { memory, target } = disk;
    for (let tag = 0; tag < 32; tag++) {
      memory.bytes.fill(tag + 100, tag * 65536, (tag + 1) * 65536);
      target.start(IO_WRITE, tag, tag * 65536, 65536, memory.address + tag * 65536);
    }
    expect(disk.ended(32)).toEqual(Array.from({ length: 32 }, () => 65536));
    expect(disk.flush()).toBe(0);
    const bytes = server.image;
    for (let tag = 0; tag < 32; tag++) expect(bytes[tag * 65536 + 4711]).toBe(tag + 100);
    memory.bytes.fill(0);
    for (let tag = 0; tag < 32; tag++)
      target.start(IO_READ, tag, tag * 65536, 65536, memory.address + tag * 65536);
    disk.ended(32);
    expect(bytes.subarray(0, 32 * 65536).equals(memory.bytes.subarray(0, 32 * 65536))).toBe(true);
  });

  test("the wrong name, the wrong authority, no certificate of ours", async () => {
    await using server = await start();
    const refusal = async (uri: string) => NbdExport.open(uri, 4, false, line).catch(describeError);
    expect(await refusal(secure(server, "other"))).toMatch(/no secure connection.*altnames/);
    await line.close();
    const stranger = await refusal(secure(server, "storage", others));
    expect(stranger).toMatch(/no secure connection.*certificate/);
    expect(stranger).not.toContain("name its authority");
    await line.close();
    expect(await refusal(secure(server, "storage", withoutClient))).toMatch(
      /no secure|closed the connection/,
    );
    await line.close();
    expect(await refusal(secure(server, "storage", "/nowhere"))).toMatch(/no secure connection.*ENOENT/);
    await line.close();
    const { uri } = server;
    const unnamed = `${uri.replace("nbd+unix", "nbds+unix")}&tls-hostname=storage`;
    const advice = "; name its authority with tls-certificates=DIR in the URI";
    expect(await refusal(unnamed)).toMatch(new RegExp(`no secure connection.*certificate.*${advice}`));
    expect(await refusal(uri)).toContain("it wants TLS: use nbds://, or nbds+unix:// for a socket");
  });
});

describe.each([
  ["localhost", "127.0.0.1"],
  ["127.0.0.1", "localhost"],
])("a certificate for %s", (name, other) => {
  let certificates: string;

  beforeAll(async () => {
    certificates = join(dir, name);
    mkdirSync(certificates);
    await makeCertificates(certificates, name);
  });

  const uriOf = (host: string, port: number): string =>
    `nbds://${host}:${port}/vm%207?tls-certificates=${certificates}`;

  test(`is for nbds://${name}, and not for nbds://${other}`, async () => {
    const port = freePort();
    const at = ["--ipaddr=127.0.0.1", `--port=${port}`];
    await using server = await nbdkit([], FILE, ...at, "--tls=require", `--tls-certificates=${certificates}`);
    using disk = await NbdExport.open(uriOf(name, port), 4, false, line);
    expect(disk.write(8192, new Uint8Array(4096).fill(7))).toBe(0);
    expect(disk.flush()).toBe(0);
    expect(server.image[8192]).toBe(7);
    await line.close();
    const refusal = await NbdExport.open(uriOf(other, port), 4, false, line).catch(describeError);
    expect(refusal).toMatch(/no secure connection.*altnames/);
  });
});

test("a server that refuses TLS is not spoken to", async () => {
  await using server = await nbdkit([], FILE, "--tls=off");
  const refusal = await NbdExport.open(secure(server), 4, false, line).catch(describeError);
  expect(refusal).toContain("no secure connection to the NBD server: the server refuses TLS");
});

test("a server that falls back to another export without TLS", async () => {
  const options = ["--tls=on", `--tls-certificates=${ours}`];
  await using server = await nbdkit(["tls-fallback"], FILE, ...options);
  using disk = await NbdExport.open(secure(server), 4, false, line);
  expect(disk.read(0, 512)).toEqual(new Uint8Array(512).fill(1));
  using plain = await NbdExport.open(server.uri, 4, true);
  expect(plain.seen.sizeBytes).toBe(512);
});

test("a server that is not there, and what is put between STARTTLS and TLS", async () => {
  const socket = join(dir, "hostile.sock");
  const uri = `nbds+unix:///?socket=${socket}&tls-hostname=storage`;
  const refusal = async () => NbdExport.open(uri, 4, false, line).catch(describeError);
  expect(await refusal()).toMatch(/no secure connection.*ENOENT/);
  await line.close();
  const listener = Bun.listen({
    unix: socket,
    socket: {
      open: (it) => void it.write(encodeGreeting()),
      data: (it) => void it.write(Buffer.concat([encodeOptionReply(5, 1), encodeOptionReply(8, 1)])),
    },
  });
  expect(await refusal()).toContain("between STARTTLS and TLS");
  listener.stop(true);
  rmSync(socket, { force: true });
});

test("nothing of a disk that is over is left", async () => {
  await using server = await strictly();
  const before = openDescriptors().length;
  const disk = await NbdExport.open(secure(server), 4, false, line);
  disk.flush();
  disk.close();
  await line.close();
  // A worker that was told to end is gone a moment later.
  while (openDescriptors().length > before) await Bun.sleep(5);
});
