// Completion of command lines: what `xentool complete` answers, and that the shells' scripts ask it.
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { SHELLS } from "../../cmd/lib/shells.ts";
import { SimHost } from "../../src/sim/host.ts";
import { Xenstore } from "../../src/xenstore/client.ts";
import { removeDirectory, temporaryDirectory } from "../support/temporary.ts";
import { executable, runShell, runXentool } from "./executable.ts";

let host: SimHost;
let dir: string;

beforeAll(async () => {
  host = await SimHost.start();
  dir = temporaryDirectory();
  writeFileSync(join(dir, "disk one.img"), "");
  mkdirSync(join(dir, "bin"));
  const create = ["blkback", "create", "--domid", "1", "--vdev", "xvdb"];
  expect(await runXentool(create, { env: { XENTOOL_SIM: host.dir } })).toMatchObject({ status: 0 });
});

afterAll(async () => {
  const left = await host.settle();
  await host.stop();
  removeDirectory(dir);
  expect(left).toEqual([]);
});

/** The candidates for the last of `words`, without their descriptions. */
async function candidates(...words: string[]): Promise<string[]> {
  const { status, stdout, stderr } = await runXentool(["complete", "--", ...words], {
    env: { XENTOOL_SIM: host.dir },
  });
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
  return stdout.split("\n").flatMap((line) => (line === "" ? [] : [line.replace(/\t.*/, "")]));
}

const DOMAINS = ["0", "1", "2", "Domain-0", "domain-1", "domain-2"];

describe("what may stand there:", () => {
  test.each([
    [
      "commands",
      [""],
      ["blkback", "blkfront", "vchan", "xsring", "sim", "top", "doctor", "selftest", "completion"],
    ],
    ["a command's beginning", ["blk"], ["blkback", "blkfront"]],
    ["actions of a group in a group", ["vchan", "bench", ""], ["listen", "connect"]],
    ["actions after a global option's value", ["--platform", "sim", "xsring", "c"], ["close"]],
    ["options", ["blkback", "close", "--d"], ["--domid"]],
    ["no option twice", ["blkback", "close", "--domid", "1", "--d"], []],
    ["but those that may be repeated", ["sim", "run", "--limit", "a=1", "--l"], ["--limit"]],
    ["a choice", ["blkback", "serve", "--mode", ""], ["r", "w", "w!"]],
    ["a choice behind =", ["blkback", "serve", "--mode=w"], ["--mode=w", "--mode=w!"]],
    ["a choice behind = as bash has it", ["blkback", "serve", "--mode", "=", "w"], ["w", "w!"]],
    ["a choice behind = as bash begins it", ["blkback", "serve", "--mode", "="], ["r", "w", "w!"]],
    ["a positional's choice", ["completion", ""], ["bash", "zsh", "fish"]],
    ["a file", ["blkback", "serve", ""], [":file"]],
    ["a directory", ["sim", "stop", "--dir", ""], [":directory"]],
    ["domains", ["blkback", "close", "--domid", ""], DOMAINS],
    ["domains as a positional", ["vchan", "connect", ""], DOMAINS],
    ["domains by their names", ["vchan", "connect", "D"], ["Domain-0"]],
    ["disks of a domain", ["blkback", "close", "--domid", "1", "--vdev", ""], ["xvdb"]],
    ["disks of a domain by its name", ["blkback", "close", "--domid", "domain-1", "--vdev", ""], ["xvdb"]],
    ["disks of a domain that has none", ["blkback", "close", "--domid", "2", "--vdev", ""], []],
    ["the file of a command behind --", ["sim", "run", "--", ""], [":file"]],
    ["nothing behind -- of others", ["doctor", "--", ""], []],
    ["nothing for a text", ["blkback", "serve", "--run", ""], []],
    ["nothing for an option that does not exist", ["doctor", "--nonsense="], []],
  ])("%s", async (_what, words, expected) => {
    expect(await candidates(...words)).toEqual(expected);
  });

  test("a name that a shell would change is no candidate, and obeys no terminal", async () => {
    using dom0 = host.platform(0);
    using xenstore = await Xenstore.connect(dom0);
    const name = "/local/domain/1/name";
    const before = await xenstore.read(name);
    await xenstore.write(name, "web\n9\tevil\x1b[2J");
    const { stdout } = await runXentool(["complete", "--", "blkback", "close", "--domid", ""], {
      env: { XENTOOL_SIM: host.dir },
    });
    expect(stdout.split("\n")).toEqual([
      "0\tDomain-0",
      "1\tweb\\x0a9\\x09evil\\x1b[2J",
      "2\tdomain-2",
      "Domain-0\tdomain 0",
      "domain-2\tdomain 2",
      "",
    ]);
    await xenstore.write(name, before);
  });

  test("nothing, and no error, where there is no xenstore", async () => {
    const words = ["complete", "--", "blkback", "close", "--domid", ""];
    const env = { XENTOOL_SIM: join(dir, "none") };
    expect(await runXentool(words, { env })).toEqual({ status: 0, stdout: "", stderr: "" });
  });
});

const ASK: Readonly<Record<(typeof SHELLS)[number], string>> = {
  bash: `complete_words() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _xentool "$1"; printf '%s\\n' "\${COMPREPLY[@]}"
  }
  eval "$("$xentool" completion bash)" && cd "$dir" && compopt() { :; } &&
  complete_words "$xentool" blkback serve "di"; complete_words "$xentool" blkback serve --mode r`,
  zsh: `zsh -fc '_files() { print -- files }; compdef() { :; }; _describe() { print -l -- $values }
  eval "$("$xentool" completion zsh)"
  words=("$xentool" blkback serve di) CURRENT=4; _xentool
  words=("$xentool" blkback serve --mode r) CURRENT=5; _xentool'`,
  fish: `fish -Nc '"$xentool" completion fish | source; cd "$dir"
  fish_add_path -P (dirname "$xentool")
  complete -C "xentool blkback serve di"; complete -C "xentool blkback serve --mode r"'`,
};

test.each([...SHELLS])("%s completes a file and a choice", async (shell) => {
  const { stdout, stderr } = await runShell(ASK[shell], { dir, XENTOOL_SIM: host.dir, executable });
  expect(stderr).toBe("");
  const [file = "", choice = ""] = stdout.trim().split("\n");
  expect(file.replaceAll("\\", "")).toBe(shell === "zsh" ? "files" : "disk one.img");
  expect(choice.replace(/:.*/, "")).toBe("r");
});
