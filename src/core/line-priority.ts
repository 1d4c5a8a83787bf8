// Priorities of lines on stderr, for the systemd journal.
import { fstatSync } from "node:fs";

/** Priorities of syslog(3). */
const PRIORITIES = { error: 3, warning: 4, info: 6, debug: 7 } as const;
export type Priority = keyof typeof PRIORITIES;

let isJournal: boolean | undefined;

/**
 * What begins a line on stderr, so that the systemd journal files it under its priority (sd-daemon(3)); "" if
 * stderr is anything else.
 */
export function priorityMark(level: Priority): string {
  isJournal ??= isStderr(process.env["JOURNAL_STREAM"]);
  return isJournal ? `<${PRIORITIES[level]}>` : "";
}

/**
 * Whether `stream`, "DEVICE:INODE", is where stderr goes: it may have been redirected after we got the variable.
 */
function isStderr(stream: string | undefined): boolean {
  if (stream === undefined) return false;
  try {
    const { dev, ino } = fstatSync(2);
    return stream === `${dev}:${ino}`;
  } catch {
    return false;
  }
}
