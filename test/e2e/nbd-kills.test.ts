// A guest that writes and trims on an NBD server that forgets what was not flushed when it dies. The server is killed,
// xentool is, and both are, under load: the guest sees no error, and reads what it was told was written.
import { test } from "bun:test";
import { onForgetfulServer } from "./forgetful-server.ts";
import { survive } from "./kill-world.ts";

const ROUNDS = Number(process.env["NBD_KILLS"] ?? 6);

test(
  "servers that are killed, alternating: nothing acknowledged is lost",
  () => survive("NBD kills", ROUNDS, onForgetfulServer),
  60_000 + ROUNDS * 5000,
);
