// xentool's entry point. What a role does not need is not loaded: a host with many guests starts many processes.
import "./lib/standard-error.ts";
import "./lib/working-directory.ts";
import { GUEST_ROLE } from "./guest-role.ts";

// It asks `watch` for a handover. People send it by name, to `serve` and the process of a guest as well.
process.on("SIGUSR2", () => {});

const [first, second, third = ""] = Bun.argv.slice(2);
if (first === GUEST_ROLE && second === "--") await (await import("./guest.ts")).runGuest(third);
else await (await import("./command-line.ts")).runCommandLine(Bun.argv.slice(2));
