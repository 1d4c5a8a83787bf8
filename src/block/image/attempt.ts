// Looks at files that belong to others: they may vanish while we look, be out of our reach, or be on a dead file
// server (EACCES, ESTALE, ENOTCONN). None of that is a reason to refuse an unrelated image.
import { statSync, type Stats } from "node:fs";

export function attempt<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}

export function tryStat(path: string): Stats | undefined {
  return attempt(() => statSync(path));
}
