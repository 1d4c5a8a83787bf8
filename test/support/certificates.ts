// Certificates for tests, made with openssl: a directory as NBD's tools want it.
import { writeFileSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import { run } from "./process.ts";

const DAYS = ["-days", "2"];
const KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

async function openssl(dir: string, ...args: readonly string[]): Promise<void> {
  const { status, stderr } = await run(["openssl", ...args], { cwd: dir });
  if (status !== 0) throw new Error(stderr);
}

/** Makes an authority in `dir`, and what it certifies: a server called `name`, or with this number, and a client. */
export async function makeCertificates(dir: string, name: string): Promise<void> {
  const ca = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-subj", "/CN=an authority"];
  await openssl(dir, "req", "-x509", ...KEY, ...ca, ...DAYS);
  writeFileSync(join(dir, "names"), `subjectAltName=${isIP(name) === 0 ? "DNS" : "IP"}:${name}\n`);
  for (const who of ["server", "client"]) {
    const request = ["-keyout", `${who}-key.pem`, "-out", `${who}.csr`, "-subj", `/CN=${who}`];
    await openssl(dir, "req", ...KEY, ...request);
    const signed = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", "names"];
    await openssl(dir, "x509", "-req", "-in", `${who}.csr`, ...signed, ...DAYS, "-out", `${who}-cert.pem`);
  }
}
