// The pages of a guest that one ring keeps mapped. A page that no request names stays mapped for a minute. A full ring
// keeps those used last: what is above the limit is unmapped with the last request that names it, and now and then a
// few of the pages unused for longest make room. The guest agreed to all of this (feature-persistent), so it grants
// pages for writing, whatever a request does, and can no longer take them back.
import type { Domid } from "../../../core/types.ts";
import type { Mapping } from "../../../native/memory.ts";
import { Timer } from "../../../native/reactor.ts";
import type { GrantTable } from "../../../platform/platform.ts";
import { MAX_PERSISTENT_GRANTS } from "../../bounds.ts";
import type { Clock } from "../../limits/rate-limiter.ts";

const IDLE_MS = 60_000;
/** Idle pages are looked for at most once in this time. */
const IDLE_LOOK_MS = 1000;
/** A full ring makes room at most once in this time, for this many pages (Linux: 5 %). */
const ROOM_EVERY_MS = 100;
const ROOM_PAGES = Math.ceil(MAX_PERSISTENT_GRANTS * 0.05);

interface Page {
  readonly ref: number;
  readonly mapping: Mapping;
  /** Segments of requests under way that name it. */
  users: number;
  usedAtMs: number;
}

/** What `acquire` returns for a grant that cannot be mapped. */
export const NO_PAGE = 0xffff;

export class PersistentGrants {
  readonly #domid: Domid;
  readonly #grants: GrantTable;
  readonly #clock: Clock;
  readonly #placeOf = new Map<number, number>();
  readonly #pages: (Page | undefined)[] = [];
  readonly #freePlaces: number[] = [];
  readonly #timer = new Timer(() => this.#dropIdle());
  #roomFromMs = -Infinity;

  constructor(domid: Domid, grants: GrantTable, clock: Clock) {
    this.#domid = domid;
    this.#grants = grants;
    this.#clock = clock;
  }

  /** Pages that are mapped, kept or not. */
  get mapped(): number {
    return this.#placeOf.size;
  }

  /** Holds the page behind `ref` until it is released as often. Returns its place, or NO_PAGE. */
  acquire(ref: number): number {
    const place = this.#placeOf.get(ref) ?? this.#map(ref);
    const page = this.#pages[place];
    if (page !== undefined) page.users++;
    return place;
  }

  addressOf(place: number): number {
    return (this.#pages[place] as Page).mapping.address;
  }

  bytesOf(place: number): Uint8Array {
    return (this.#pages[place] as Page).mapping.bytes;
  }

  release(place: number): void {
    const page = this.#pages[place];
    if (page === undefined || --page.users > 0) return;
    if (this.mapped > MAX_PERSISTENT_GRANTS) {
      this.#unmap(place);
      return;
    }
    page.usedAtMs = this.#clock.nowMs;
    if (this.#timer.dueMs === Infinity) this.#clock.setTimer(this.#timer, IDLE_MS);
  }

  /** Unmaps everything. */
  close(): void {
    for (const page of this.#pages) page?.mapping.close();
    this.#pages.length = 0;
    this.#placeOf.clear();
  }

  /** Each page is mapped by itself, so that it can be unmapped by itself, and a bad grant is that page's alone. */
  #map(ref: number): number {
    if (this.mapped >= MAX_PERSISTENT_GRANTS) this.#makeRoom();
    let mapping: Mapping;
    try {
      mapping = this.#grants.map(this.#domid, [ref], "rw");
    } catch {
      return NO_PAGE;
    }
    const place = this.#freePlaces.pop() ?? this.#pages.length;
    this.#pages[place] = { ref, mapping, users: 0, usedAtMs: 0 };
    this.#placeOf.set(ref, place);
    return place;
  }

  #unmap(place: number): void {
    const page = this.#pages[place];
    if (page === undefined) return;
    page.mapping.close();
    this.#pages[place] = undefined;
    this.#placeOf.delete(page.ref);
    this.#freePlaces.push(place);
  }

  /** Places of the pages that no request names, those unused for longest first. */
  #idle(): number[] {
    const usedAtMs = (place: number): number => (this.#pages[place] as Page).usedAtMs;
    const places = [...this.#placeOf.values()].filter((place) => this.#pages[place]?.users === 0);
    return places.toSorted((a, b) => usedAtMs(a) - usedAtMs(b));
  }

  #makeRoom(): void {
    if (this.#clock.nowMs < this.#roomFromMs) return;
    this.#roomFromMs = this.#clock.nowMs + ROOM_EVERY_MS;
    for (const place of this.#idle().slice(0, ROOM_PAGES)) this.#unmap(place);
  }

  #dropIdle(): void {
    const { nowMs } = this.#clock;
    let oldestMs = Infinity;
    for (const place of this.#idle()) {
      const usedAtMs = (this.#pages[place] as Page).usedAtMs;
      if (usedAtMs + IDLE_MS <= nowMs) this.#unmap(place);
      else oldestMs = Math.min(oldestMs, usedAtMs);
    }
    // Pages in use set the timer again when they are released.
    if (oldestMs < Infinity)
      this.#clock.setTimer(this.#timer, Math.max(IDLE_LOOK_MS, oldestMs + IDLE_MS - nowMs));
  }
}
