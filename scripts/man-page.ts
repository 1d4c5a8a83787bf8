// A manual page out of a command's --help: one set of definitions, in cmd/, serves both.

/** One command's help, taken apart. */
export interface Help {
  /** The command line: "xentool blkback serve <image>". */
  readonly usage: string;
  readonly description: string;
  /** Options, Examples and so on: what is named, and what is said about it. */
  readonly sections: ReadonlyMap<string, readonly (readonly [name: string, text: string])[]>;
}

/** Takes apart what --help prints with COLUMNS so large that no line is wrapped. */
export function parseHelp(text: string): Help {
  const [usage = "", ...lines] = text.trimEnd().split("\n");
  const sections = new Map<string, [string, string][]>();
  const description: string[] = [];
  let entries: [string, string][] | undefined;
  /** What the example on the next line is for. */
  let purpose: string | undefined;
  for (const line of lines) {
    const title = /^([A-Z][a-z ]+):$/.exec(line)?.[1];
    const entry = /^ {2,}(\S.*?)(?: {2,}(.*))?$/.exec(line);
    if (title !== undefined) sections.set(title, (entries = []));
    else if (entry?.[1]?.startsWith("# ") === true) purpose = entry[1].slice(2);
    else if (entry !== null && purpose !== undefined) {
      entries?.push([line.trim(), purpose]);
      purpose = undefined;
    } else if (entry !== null && entries !== undefined)
      entries.push([String(entry[1]), (entry[2] ?? "").replace(/ {2,}/g, " ")]);
    else if (line !== "") description.push(line.trim());
  }
  return { usage, description: description.join(" "), sections };
}

/** The commands below: "xentool blkback serve <image>" as ["blkback", "serve"]. */
export function subcommands({ sections }: Help): string[][] {
  return (sections.get("Commands") ?? []).map(([usage]) => commandWords(usage).slice(1));
}

function commandWords(usage: string): string[] {
  return usage.split(" ").filter((word) => /^[a-z][a-z-]*$/.test(word));
}

/** The page's name: "xentool-blkback-serve". */
export function pageName({ usage }: Help): string {
  return commandWords(usage).join("-");
}

/** Text as roff shows it: nothing in it is an instruction. */
function roff(text: string): string {
  const escaped = text.replaceAll("\\", "\\e").replaceAll("-", "\\-").replaceAll("'", "\\(aq");
  const ascii = escaped.replaceAll("…", "...").replaceAll("`", "\\(ga");
  return ascii.replace(/^\./, "\\&.");
}

interface PageContext {
  readonly version: string;
  readonly exitStatus: readonly (readonly [string, string])[];
  readonly environment: readonly (readonly [string, string])[];
  readonly seeAlso: readonly string[];
}

/** The page, in roff with the man macros. */
export function manPage(help: Help, context: PageContext): string {
  const name = pageName(help);
  const words = commandWords(help.usage).join(" ");
  const rest = help.usage.slice(words.length).trim();
  const list = (entries: readonly (readonly [string, string])[]): string[] =>
    entries.flatMap(([term, text]) => [".TP", `.B ${roff(term)}`, roff(text === "" ? term : text)]);
  const sections = [...help.sections].flatMap(([title, entries]) => [
    `.SH ${title.toUpperCase()}`,
    ...(title === "Examples"
      ? entries.flatMap(([command, text]) => [".PP", `${roff(text)}:`, ".PP", ".EX", roff(command), ".EE"])
      : list(entries)),
  ]);
  const lines = [
    `.TH ${name.toUpperCase().replaceAll("-", "\\-")} 1 "" "xentool ${context.version}" "User Commands"`,
    ".SH NAME",
    `${roff(name)} \\- ${roff(help.description)}`,
    ".SH SYNOPSIS",
    `.B ${roff(words)}`,
    roff(rest.includes("[options]") ? rest : `${rest} [options]`.trim()),
    ...sections,
    ".SH EXIT STATUS",
    ...list(context.exitStatus),
    ".SH ENVIRONMENT",
    ...list(context.environment),
    ".SH SEE ALSO",
    context.seeAlso
      .filter((page) => page !== name)
      .map((page) => `.BR ${roff(page)} (1)`)
      .join(" ,\n"),
  ];
  return `${lines.join("\n")}\n`;
}
