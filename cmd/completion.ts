// `xentool completion`: what makes a shell complete our commands, options and values.
import { command, WAITS_FOR_NOBODY } from "./lib/command.ts";
import { choice } from "./lib/option.ts";
import { SHELLS } from "./lib/shells.ts";

export const completionCommand = command({
  name: "completion",
  summary: "Print what makes a shell complete commands, options, files, domains and disks",
  options: { shell: choice(SHELLS, "Which shell", { positional: true }) },
  timeout: WAITS_FOR_NOBODY,
  examples: [
    ['eval "$(xentool completion bash)"', "in this shell; in ~/.bashrc, in every one"],
    ['eval "$(xentool completion zsh)"', "for zsh, after compinit"],
    ["xentool completion fish | source", "for fish"],
  ],
  run: async ({ shell }) => {
    const { completionScript } = await import("./lib/completion-scripts.ts");
    process.stdout.write(completionScript(shell));
  },
});
