// Manual pages are made from the commands' definitions: every command and option must come through, as roff that
// groff accepts.
import { describe, expect, test } from "bun:test";
import { xentool } from "../../cmd/commands.ts";
import { command } from "../../cmd/lib/command.ts";
import { flag } from "../../cmd/lib/option.ts";
import { manPage, pageName, pagesOf, type Page } from "../../scripts/man-page.ts";

const context = {
  version: "1.2.3",
  exitStatus: [["0", "Done."]],
  environment: [],
  seeAlso: ["other"],
} as const;

/** What groff has to say about a page, and the page as plain text. */
async function format(page: string): Promise<{ warnings: string; text: string }> {
  const command = ["groff", "-man", "-Tascii", "-ww", "-P-c", "-P-b", "-P-o", "-P-u"];
  const child = Bun.spawn(command, { stdin: new Blob([page]), stdout: "pipe", stderr: "pipe" });
  const [text, warnings] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { warnings, text };
}

test("text cannot become an instruction to roff", async () => {
  const words = ["xentool", "x"];
  const page: Page = {
    words,
    command: command({
      name: "x",
      summary: ".so /etc/passwd",
      options: { "back\\slash": flag("'quoted' .not \\fB `tick` …") },
      examples: [],
      run: () => {},
    }),
  };
  const { warnings, text } = await format(manPage(page, context));
  expect(warnings).toBe("");
  expect(text).toContain(".so /etc/passwd");
  expect(text).toContain("--back\\slash");
  expect(text.replace(/\s+/g, " ")).toContain("'quoted' .not \\fB `tick` ...");
});

describe("every command", () => {
  const pages = pagesOf(xentool);

  test("is there", () => {
    const names = pages.map(pageName);
    expect(names).toContain("xentool-blkback-serve");
    expect(names).toContain("xentool-completion");
    expect(names).toContain("xentool");
  });

  test.each(pages.map((page) => [pageName(page), page] as const))(
    "%s has a page that groff accepts",
    async (_name, page) => {
      const { warnings, text } = await format(manPage(page, context));
      expect(warnings).toBe("");
      for (const [option, { positional }] of Object.entries(page.command.options))
        expect(text).toContain(positional ? option : `--${option}`);
      for (const [line] of page.command.examples) expect(text).toContain(line.split(" ")[0] as string);
    },
  );

  test("shows its own exit statuses, before those of all", async () => {
    const inspect = pages.find((page) => pageName(page) === "xentool-xsring-inspect") as Page;
    const { text } = await format(manPage(inspect, context));
    expect(text.replace(/\s+/g, " ")).toContain("EXIT STATUS 0 Healthy. 4 Corrupt. 10 The guest waits");
    expect(text).not.toContain("Done.");
  });
});
