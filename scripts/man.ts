// npm run man: manual pages in dist/man/man1, one for each command, made from the commands' definitions.
// `man -M dist/man xentool` shows them.
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { xentool } from "../cmd/commands.ts";
import packageJson from "../package.json" with { type: "json" };
import { EXIT_CODE } from "../src/core/errors.ts";
import { main, root } from "./lib.ts";
import { manPage, pageName, pagesOf } from "./man-page.ts";

const PAGES = join(root, "dist/man/man1");

const EXIT_STATUS = [
  ["0", "Done."],
  [String(EXIT_CODE.usage), "The command line makes no sense."],
  [
    String(EXIT_CODE.environment),
    "This host lacks something, or we may not use it; xentool doctor may know.",
  ],
  [String(EXIT_CODE.protocol), "The other side broke the protocol."],
  [String(EXIT_CODE.io), "Input or output failed."],
  [String(EXIT_CODE.timeout), "Time is up."],
  [String(EXIT_CODE.bug), "A bug in xentool."],
  ["another", "That of the COMMAND that xentool was told to run, when nothing else went wrong."],
  ["129, 130, 143", "Ended by SIGHUP, SIGINT or SIGTERM, after letting go of everything cleanly."],
] as const;

const ENVIRONMENT = [
  ["XENTOOL_SIM", "Directory of a running simulated host, to use instead of Xen."],
  [
    "XENTOOL_DOMID",
    "Which domain we are; by default 0 on a simulated host, and what Xen says on a real one.",
  ],
  ["XENSTORED_PATH", "Socket of xenstored, where it is not in the usual place."],
  ["NO_COLOR", "No colours, also on a terminal."],
] as const;

await main(() => {
  const pages = pagesOf(xentool);
  const seeAlso = pages.map(pageName);
  rmSync(PAGES, { recursive: true, force: true });
  mkdirSync(PAGES, { recursive: true });
  const context = {
    version: packageJson.version,
    exitStatus: EXIT_STATUS,
    environment: ENVIRONMENT,
    seeAlso,
  };
  for (const page of pages) writeFileSync(join(PAGES, `${pageName(page)}.1`), manPage(page, context));
  console.log(`${pages.length} manual pages in dist/man; read them with: man -M dist/man xentool`);
});
