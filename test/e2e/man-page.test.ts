// Manual pages are made from --help: every command and option must come through, as roff that groff accepts.
import { describe, expect, test } from "bun:test";
import { manPage, pageName, parseHelp, subcommands, type Help } from "../../scripts/man-page.ts";
import { runXentool } from "./executable.ts";

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

async function helpOf(command: readonly string[]): Promise<Help> {
  const { stdout } = await runXentool([...command, "--help"], { env: { COLUMNS: "1000" } });
  return parseHelp(stdout);
}

test("help is taken apart", () => {
  const help = parseHelp(
    `xentool a b <image>

Do it

Options:
  -v, --verbose  Log:  more            [count]
      --quiet                        [boolean]

Examples:
  # silently
  xentool a b x.img --quiet
`,
  );
  expect(help.usage).toBe("xentool a b <image>");
  expect(help.description).toBe("Do it");
  expect(pageName(help)).toBe("xentool-a-b");
  expect(Object.fromEntries(help.sections)).toEqual({
    Options: [
      ["-v, --verbose", "Log: more [count]"],
      ["--quiet", "[boolean]"],
    ],
    Examples: [["xentool a b x.img --quiet", "silently"]],
  });
});

test("text cannot become an instruction to roff", async () => {
  const help: Help = {
    usage: "xentool x",
    description: ".so /etc/passwd",
    sections: new Map([["Options", [["--back\\slash", "'quoted' .not \\fB `tick` …"]]]]),
  };
  const { warnings, text } = await format(manPage(help, context));
  expect(warnings).toBe("");
  expect(text).toContain(".so /etc/passwd");
  expect(text).toContain("--back\\slash");
  expect(text.replace(/\s+/g, " ")).toContain("'quoted' .not \\fB `tick` ...");
});

describe("every command", async () => {
  const names = subcommands(await helpOf([])).map(([name]) => String(name));

  test("is there", () => {
    expect(names).toContain("blkback");
    expect(names).toContain("completion");
  });

  test.each(names.filter((name) => name !== "completion"))(
    "%s has a page that groff accepts",
    async (name) => {
      const help = await helpOf([name]);
      for (const command of [[name], ...subcommands(help)]) {
        const page = await helpOf(command);
        expect(page.description).not.toBe("");
        const { warnings, text } = await format(manPage(page, context));
        expect({ command, warnings }).toEqual({ command, warnings: "" });
        for (const [option] of page.sections.get("Options") ?? []) expect(text).toContain(option);
      }
    },
  );
});
