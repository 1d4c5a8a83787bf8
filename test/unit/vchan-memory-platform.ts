// Two domains in one process, on plain memory: the least that a vchan needs of a platform, with everything
// counted, so that a test can tell that nothing is left.
import { closeSync } from "node:fs";
import { expect } from "bun:test";
import { XentoolError } from "../../src/core/errors.ts";
import { toDomid, type Domid, type EvtchnPort, type GrantRef } from "../../src/core/types.ts";
import { allocateMemory, Mapping } from "../../src/native/memory.ts";
import { shim } from "../../src/native/shim.ts";
import type {
  EventChannels,
  GrantShare,
  GrantTable,
  Platform,
  SharedPages,
  UnmapNotify,
} from "../../src/platform/platform.ts";

const PAGE = 4096;

interface Port {
  readonly owner: MemoryEventChannels;
  readonly remoteDomid: number;
  peer: Port | undefined;
  number: number;
  masked: boolean;
  pending: boolean;
}

/** What the two domains share: grants by reference, ports by number. */
export class MemoryHost {
  readonly grants = new Map<number, { address: number; writable: boolean }>();
  readonly ports = new Map<number, Port>();
  open = 0;
  mapped = 0;
  pages = 0;
  pagesMax = 1024;
  #next = 8;

  next(): number {
    return this.#next++;
  }

  platform(domid: number): Platform {
    const id = toDomid(domid);
    return {
      name: "sim",
      domid: id,
      xenstore: { kind: "socket", path: "/nonexistent" },
      descriptor: { name: "sim", dir: "/nonexistent", domid: id },
      openEventChannels: () => new MemoryEventChannels(this, id),
      openGrantTable: () => new MemoryGrantTable(this),
      openGrantShare: () => new MemoryGrantShare(this),
      close: () => {},
      [Symbol.dispose]: () => {},
    };
  }

  /** A Mapping of somebody's pages; the last thing it does is what the kernel does on unmapping. */
  view(address: number, sizeBytes: number, notify: UnmapNotify | undefined, release: () => void): Mapping {
    this.mapped++;
    return new Mapping(address, sizeBytes, () => {
      this.mapped--;
      if (notify?.clearByteAt !== undefined) {
        const page = new Mapping(address, PAGE, () => {});
        page.bytes[notify.clearByteAt] = 0;
        page.close();
      }
      if (notify?.port !== undefined) this.send(notify.port);
      release();
    });
  }

  send(number: number): void {
    const peer = this.ports.get(number)?.peer;
    if (peer === undefined) return;
    peer.pending = true;
    if (!peer.masked) shim.xt_eventfd_signal(peer.owner.fd);
  }

  assertNothingLeft(): void {
    expect({ open: this.open, mapped: this.mapped, pages: this.pages }).toEqual({
      open: 0,
      mapped: 0,
      pages: 0,
    });
    expect([this.grants.size, this.ports.size]).toEqual([0, 0]);
  }
}

class MemoryEventChannels implements EventChannels {
  readonly fd = shim.xt_eventfd();
  readonly #host: MemoryHost;
  readonly #domid: Domid;

  constructor(host: MemoryHost, domid: Domid) {
    this.#host = host;
    this.#domid = domid;
    host.open++;
  }

  bindUnbound(domid: Domid): EvtchnPort {
    return this.#add(domid, undefined);
  }

  bindInterdomain(domid: Domid, remotePort: EvtchnPort): EvtchnPort {
    const remote = this.#host.ports.get(remotePort);
    if (remote === undefined || remote.peer !== undefined || remote.remoteDomid !== this.#domid)
      throw new XentoolError("io", `cannot bind to port ${remotePort}: EINVAL`);
    const port = this.#add(domid, remote);
    remote.peer = this.#host.ports.get(port);
    this.#host.send(remote.number);
    return port;
  }

  notify(port: EvtchnPort): number {
    this.#host.send(port);
    return 0;
  }

  pending(ports: Uint32Array): number {
    shim.xt_eventfd_drain(this.fd);
    let count = 0;
    for (const port of this.#own())
      if (port.pending && !port.masked && count < ports.length) {
        port.pending = false;
        port.masked = true;
        ports[count++] = port.number;
      }
    return count;
  }

  unmask(port: EvtchnPort): number {
    const entry = this.#host.ports.get(port) as Port;
    entry.masked = false;
    if (entry.pending) shim.xt_eventfd_signal(this.fd);
    return 0;
  }

  unbind(port: EvtchnPort): void {
    const entry = this.#host.ports.get(port);
    if (entry?.peer !== undefined) entry.peer.peer = undefined;
    this.#host.ports.delete(port);
  }

  restrict(): boolean {
    return false;
  }

  close(): void {
    for (const port of this.#own()) this.unbind(port.number as EvtchnPort);
    closeSync(this.fd);
    this.#host.open--;
  }

  #own(): Port[] {
    return [...this.#host.ports.values()].filter((port) => port.owner === this);
  }

  #add(remoteDomid: number, peer: Port | undefined): EvtchnPort {
    const number = this.#host.next();
    this.#host.ports.set(number, { owner: this, remoteDomid, peer, number, masked: false, pending: false });
    return number as EvtchnPort;
  }
}

class MemoryGrantTable implements GrantTable {
  readonly #host: MemoryHost;

  constructor(host: MemoryHost) {
    this.#host = host;
    host.open++;
  }

  map(_domid: Domid, refs: ArrayLike<number>, access: "r" | "rw", notify?: UnmapNotify): Mapping {
    const grants = Array.from(refs, (ref) => this.#host.grants.get(ref));
    const first = grants[0]?.address ?? -1;
    const sound = grants.every(
      (grant, i) => grant?.address === first + i * PAGE && (grant.writable || access === "r"),
    );
    if (!sound) throw new XentoolError("io", "cannot map the grants: EINVAL");
    return this.#host.view(first, grants.length * PAGE, notify, () => {});
  }

  copy(): number {
    throw new XentoolError("bug", "a vchan copies no grants");
  }

  close(): void {
    this.#host.open--;
  }
}

class MemoryGrantShare implements GrantShare {
  readonly #host: MemoryHost;

  constructor(host: MemoryHost) {
    this.#host = host;
    host.open++;
  }

  /** The memory stays until the process ends: a peer may still have it mapped. */
  share(_domid: Domid, pageCount: number, access: "r" | "rw", notify?: UnmapNotify): SharedPages {
    if (this.#host.pages + pageCount > this.#host.pagesMax)
      throw new XentoolError("io", `cannot share ${pageCount} pages: ENOSPC`);
    const { address } = allocateMemory(pageCount * PAGE);
    const refs = Array.from({ length: pageCount }, () => this.#host.next() as GrantRef);
    refs.forEach((ref, i) =>
      this.#host.grants.set(ref, { address: address + i * PAGE, writable: access === "rw" }),
    );
    this.#host.pages += pageCount;
    const mapping = this.#host.view(address, pageCount * PAGE, notify, () => {
      for (const ref of refs) this.#host.grants.delete(ref);
      this.#host.pages -= pageCount;
    });
    return { refs, mapping };
  }

  close(): void {
    this.#host.open--;
  }
}
