// --jail of the commands that serve no disk. There it has to be asked for.
import { choice } from "./option.ts";

export const ASKED_JAIL = choice(
  ["on", "strict", "off"],
  "Give up what is not needed; strict: all of it or fail",
  { initial: "off" },
);
