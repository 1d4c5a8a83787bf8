// Picks and opens a platform: the simulated host named by XENTOOL_SIM, or the Xen host we run on.
import { open, readFile } from "node:fs/promises";
import { within } from "../core/deadline.ts";
import { XentoolError } from "../core/errors.ts";
import { escapeText } from "../core/log.ts";
import { parseDecimal, toDomid, type Domid } from "../core/types.ts";
import { decodeText, encodePacket, encodeStrings, XS_HEADER_BYTES, XS_READ } from "../protocol/xs-wire.ts";
import type { Platform, PlatformDescriptor } from "./platform.ts";
import { SimPlatform } from "./sim.ts";
import { onXen, XenPlatform, xenstoreEndpoint } from "./xen.ts";

const PLATFORM_CHOICES = ["auto", "xen", "sim"] as const;
export type PlatformChoice = (typeof PLATFORM_CHOICES)[number];

export interface PlatformOptions {
  readonly platform?: PlatformChoice;
  readonly env?: Readonly<Record<string, string | undefined>>;
}

const DOMID_ANSWER_MS = 5000;
const CAPABILITIES = "/proc/xen/capabilities";

/**
 * Opens the platform that `descriptor` describes, synchronously. A worker thereby gets the same platform as the thread
 * that started it.
 */
export function openPlatform(descriptor: PlatformDescriptor): Platform {
  return descriptor.name === "sim" ? new SimPlatform(descriptor) : new XenPlatform(descriptor);
}

/**
 * Opens the platform for a command line. `auto` takes the simulated host of XENTOOL_SIM, otherwise Xen. Our domid is
 * XENTOOL_DOMID; without it, domain 0 on a simulated host and what Xen reports on a real one. Fails with `environment`
 * when neither platform is available, `usage` when the variables make no sense.
 */
export async function choosePlatform(options: PlatformOptions = {}): Promise<Platform> {
  const env = options.env ?? process.env;
  const dir = env["XENTOOL_SIM"];
  const choice = options.platform ?? "auto";
  const domid = domidFromEnv(env);
  if (dir !== undefined && dir !== "" && choice !== "xen")
    return openPlatform({ name: "sim", dir, domid: domid ?? toDomid(0), ...xenstoreOf(env) });
  if (choice !== "sim" && onXen())
    return openPlatform({ name: "xen", domid: domid ?? (await ownDomid(env)) });
  const what =
    choice === "sim" ? "XENTOOL_SIM names no simulated host" : "this is no Xen host (no /dev/xen/evtchn)";
  const advice =
    choice === "xen"
      ? "in a Xen domain, load the module xen-evtchn"
      : "start a simulated one: `xentool sim run -- COMMAND`, or `xentool sim start`";
  throw new XentoolError("environment", `${what}; ${advice}`);
}

/** XENTOOL_XENSTORE=ring reaches xenstored as a guest's kernel does, through the ring that `xsring trace` shows. */
function xenstoreOf(env: Readonly<Record<string, string | undefined>>): { xenstore?: "ring" } {
  const choice = env["XENTOOL_XENSTORE"] ?? "";
  if (choice === "ring") return { xenstore: "ring" };
  if (choice === "" || choice === "socket") return {};
  throw new XentoolError("usage", `XENTOOL_XENSTORE is socket or ring, not ${escapeText(choice)}`);
}

/** The value of XENTOOL_DOMID, if it is set. Fails with `usage` if it is not a domain number. */
export function domidFromEnv(env: Readonly<Record<string, string | undefined>>): Domid | undefined {
  const text = env["XENTOOL_DOMID"];
  if (text === undefined || text === "") return undefined;
  const value = parseDecimal(text, 0xffff);
  if (value === undefined)
    throw new XentoolError("usage", `XENTOOL_DOMID must be a domain number, not ${text}`);
  return toDomid(value, "XENTOOL_DOMID");
}

/** Our domid on a real Xen: 0 in the control domain, otherwise the one in xenstore. */
async function ownDomid(env: Readonly<Record<string, string | undefined>>): Promise<Domid> {
  const capabilities = await readFile(CAPABILITIES, "utf8").catch(() => "");
  if (capabilities.includes("control_d")) return toDomid(0);
  const { path } = xenstoreEndpoint(env);
  const text = await within(DOMID_ANSWER_MS, readOwnDomid(path), noAnswer).catch((error: unknown) => {
    const message = `cannot learn this domain's number from ${path}; set XENTOOL_DOMID`;
    throw new XentoolError("environment", message, { path }, error);
  });
  const value = parseDecimal(text, 0xffff);
  if (value === undefined)
    throw new XentoolError("protocol", `xenstore gives ${path} no number as our domid`);
  return toDomid(value);
}

/** Reads the relative path `domid` over the kernel's device: one packet out, one reply back. */
async function readOwnDomid(device: string): Promise<string> {
  const file = await open(device, "r+");
  try {
    await file.write(encodePacket(XS_READ, 1, 0, encodeStrings("domid")));
    const reply = new Uint8Array(XS_HEADER_BYTES + 64);
    let filled = 0;
    let wanted = XS_HEADER_BYTES;
    while (filled < wanted) {
      const { bytesRead } = await file.read(reply, filled, wanted - filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
      if (filled === XS_HEADER_BYTES) wanted += Math.min(64, new DataView(reply.buffer).getUint32(12, true));
    }
    return decodeText(reply.subarray(XS_HEADER_BYTES, filled)).replace(/\0+$/, "");
  } finally {
    await file.close();
  }
}

function noAnswer(): XentoolError {
  return new XentoolError("timeout", `no answer within ${DOMID_ANSWER_MS} ms`);
}
