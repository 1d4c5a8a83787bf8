// The body of `xentool top`: on a terminal one screen that is drawn again and again and obeys keys, elsewhere a line,
// or with --json an object, for each interval.
import { pause } from "../../src/core/deadline.ts";
import { choosePlatform } from "../../src/platform/open.ts";
import { paint, print, printJson } from "./output.ts";
import type { CommandContext } from "./run-command.ts";
import { terminalSize } from "./terminal.ts";
import { TopModel, type TopView } from "./top-model.ts";
import { drawTop, lineOfTop, sorted } from "./top-screen.ts";
import type { Sort } from "./top-sorts.ts";

export interface TopArguments {
  readonly interval: number;
  readonly sort: Sort;
  readonly count: number | undefined;
}

/** How often the rings are looked at within an interval. */
const LOOK_EVERY_MS = 25;
/** How long the first screen waits for xenstored. Later ones do not wait. */
const FIRST_ANSWER_MS = 2000;
const KEYS: Readonly<Record<string, Sort>> = {
  l: "load",
  b: "bytes",
  t: "latency",
  w: "waiting",
  n: "name",
};
const QUIT = new Set(["q", "\x03", "\x04"]);

export async function runTop(context: CommandContext, argv: TopArguments): Promise<void> {
  const { interval, count = Infinity } = argv;
  using platform = await choosePlatform({ platform: context.platform });
  using model = new TopModel(platform);
  const isScreen = process.stdout.isTTY && !context.json;
  using screen = isScreen ? new Screen(argv.sort) : undefined;
  const stop = screen === undefined ? context.stop : AbortSignal.any([context.stop, screen.quit]);
  await model.refresh(FIRST_ANSWER_MS);
  for (let shown = 0; shown < count && !stop.aborted; shown++) {
    await measure(model, interval * 1000, stop);
    if (stop.aborted) break;
    const view = model.sample();
    if (screen !== undefined) screen.show(view);
    else if (context.json)
      printJson({ ...view, ...sorted(view, argv.sort), time: view.time.getTime() }, true);
    else print(lineOfTop(view));
  }
}

/** Lets one interval pass, looking at the rings all the while, and asks xenstored for what is new. */
async function measure(model: TopModel, intervalMs: number, stop: AbortSignal): Promise<void> {
  const end = performance.now() + intervalMs;
  void model.refresh(intervalMs);
  for (let left = end - performance.now(); left > 0 && !stop.aborted; left = end - performance.now()) {
    await pause(Math.min(left, LOOK_EVERY_MS), stop);
    model.look();
  }
}

/** The terminal: its other screen without a cursor, and keys as they are pressed. Put back when it is disposed of. */
class Screen implements Disposable {
  readonly #quit = new AbortController();
  #sort: Sort;
  #view: TopView | undefined;
  readonly #isKeyboard = process.stdin.isTTY;

  constructor(sort: Sort) {
    this.#sort = sort;
    process.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J\x1b[Hxentool top: measuring…");
    process.stdout.on("resize", this.#draw);
    if (!this.#isKeyboard) return;
    process.stdin.setRawMode(true);
    process.stdin.on("data", this.#onKeys);
    process.stdin.resume();
  }

  /** Fires when the user has had enough. */
  get quit(): AbortSignal {
    return this.#quit.signal;
  }

  show(view: TopView): void {
    this.#view = view;
    this.#draw();
  }

  [Symbol.dispose](): void {
    process.stdout.off("resize", this.#draw);
    if (this.#isKeyboard) {
      process.stdin.off("data", this.#onKeys);
      process.stdin.pause();
      process.stdin.setRawMode(false);
    }
    process.stdout.write("\x1b[?25h\x1b[?1049l");
  }

  readonly #onKeys = (bytes: Uint8Array): void => {
    for (const key of new TextDecoder().decode(bytes)) {
      if (QUIT.has(key)) this.#quit.abort();
      const sort = KEYS[key];
      if (sort === undefined) continue;
      this.#sort = sort;
      this.#draw();
    }
  };

  readonly #draw = (): void => {
    const size = terminalSize();
    if (this.#view === undefined || size === undefined) return;
    const [head = "", ...rest] = drawTop(this.#view, this.#sort, size);
    const lines = [paint("bold", head), ...rest];
    // Written in one piece and over what is there, so that nothing flickers. No line end after the last line: it would
    // scroll.
    process.stdout.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\r\n")}\x1b[J`);
  };
}
