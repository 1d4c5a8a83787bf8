// How block devices are shown on a terminal.
import { describeDevice, type DeviceAddress } from "../../src/blkback/address.ts";
import type { ListedDevice } from "../../src/blkback/device/device-list.ts";
import { describeResize, type Resize } from "../../src/blkback/device/resize.ts";
import { imageErrors } from "../../src/blkback/stats/stats.ts";
import { EXIT_CODE } from "../../src/core/errors.ts";
import { escapeText } from "../../src/core/log.ts";
import { vdevName } from "../../src/protocol/blkif.ts";
import { formatBytes, formatCount, formatTable, print, printJson } from "./output.ts";
import { describeRates } from "./rates-report.ts";
import { cut, terminalSize, wrap } from "./terminal.ts";

const COLUMNS = ["domain", "vdev", "kind", "backend", "frontend", "mode", "size", "format", "image"];

/** Prints the devices. */
export function printDevices(listed: readonly ListedDevice[], json: boolean): void {
  if (json) {
    printJson(listed.map(asJson));
    return;
  }
  if (listed.length === 0) {
    print("no block devices");
    return;
  }
  print(drawDevices(listed, terminalSize()?.width).join("\n"));
}

/**
 * The devices as a table, and below it what is to be known about single ones. Where the table is wider than `width`,
 * each image has a line of its own below its device, whole, because it is what tells disks apart; the rest is cut.
 */
export function drawDevices(listed: readonly ListedDevice[], width = Infinity): string[] {
  const rows = listed.map((it) => [
    String(it.frontend),
    it.vdev,
    it.kind,
    it.backendState + (it.online ? "" : " (going)"),
    it.frontendState,
    escapeText(it.mode, 8),
    it.sectors512 === undefined ? "" : formatBytes(it.sectors512 * 512),
    it.format ?? "",
    escapeText(it.params, 60),
  ]);
  const titles = COLUMNS.map((title) => ({ title }));
  const notes = listed.flatMap((it) =>
    notesOf(it).flatMap((note) => wrap(`${describeDevice(it)}: ${note}`, width)),
  );
  const whole = formatTable(titles, rows).split("\n");
  if (whole.every((line) => Bun.stringWidth(line) <= width)) return [...whole, ...notes];
  const [head = "", ...lines] = formatTable(
    titles.slice(0, -1),
    rows.map((row) => row.slice(0, -1)),
  ).split("\n");
  const table = lines.flatMap((line, at) => [
    cut(line, width),
    ...wrap(`  ${rows[at]?.at(-1) ?? ""}`, width),
  ]);
  return [cut(head, width), ...table, ...notes];
}

function asJson({ stats, ...device }: ListedDevice): unknown {
  return {
    ...device,
    server: stats?.pid ?? null,
    ioErrors: stats === undefined ? null : imageErrors(stats),
    lastIoError: stats?.lastIoError ?? null,
    flushFailure: stats?.flushFailure ?? null,
  };
}

function notesOf({ limits, problem, stats }: ListedDevice): string[] {
  const notes: string[] = [];
  if (problem !== null) notes.push(escapeText(problem, 300));
  const errors = stats === undefined ? 0 : imageErrors(stats);
  if (stats !== undefined && errors > 0)
    notes.push(
      `I/O errors of the image: ${formatCount(errors)} (${stats.flushFailure === null ? stats.lastIoError : `flush: ${stats.flushFailure}`})`,
    );
  const rates = describeRates(limits);
  if (rates !== "") notes.push(`limited to ${rates}`);
  return notes;
}

/**
 * Reports the result of a resize; anything the guest may miss is a warning on stderr. Returns the exit status: that of
 * `io` when the disk could not take its image's size.
 */
export function printResize(address: DeviceAddress, { before, after }: Resize, json: boolean): number {
  const { text, warns, applied } = describeResize({ before, after });
  const device = { domid: address.frontend, vdev: vdevName(address.devid) };
  if (json)
    printJson({
      ...device,
      sectorsBefore: before,
      sectorsOfImage: after,
      applied,
      warning: warns ? text : null,
    });
  else if (!warns) print(`${describeDevice(address)}: ${text}`);
  if (warns) process.stderr.write(`xentool: warning: ${describeDevice(address)}: ${text}\n`);
  return applied ? 0 : EXIT_CODE.io;
}
