// Looks at what belongs to others: it may go while we look, lie where we may not, or on a file server that is dead
// (EACCES, ESTALE, ENOTCONN). None of that is a reason to refuse an image that has nothing to do with it.
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
