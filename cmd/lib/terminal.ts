// How lines are made to fit the terminal that stdout is. In a pipe there is no width, and nothing is cut.

export interface ScreenSize {
  readonly width: number;
  readonly height: number;
}

/** The size of the terminal that stdout is, or undefined in a pipe. */
export function terminalSize(): ScreenSize | undefined {
  const { isTTY, columns, rows } = process.stdout;
  return isTTY ? { width: columns || 80, height: rows || 24 } : undefined;
}

/** `text` in at most `width` columns; an ellipsis says that something is missing. */
export function cut(text: string, width: number): string {
  return text.length <= width ? text : `${text.slice(0, Math.max(0, width - 1))}…`;
}

/** `text` in lines of at most `width` columns; those after the first are indented further than it is. */
export function wrap(text: string, width: number): string[] {
  const indent = " ".repeat(Math.min(text.search(/\S|$/) + 2, Math.floor(width / 2)));
  const lines: string[] = [];
  let rest = text;
  while (rest.length > width) {
    // At a space if there is one in the second half of the line: a path is broken where the line ends.
    const space = rest.lastIndexOf(" ", width);
    const end = space > width / 2 ? space : width;
    lines.push(rest.slice(0, end).trimEnd());
    rest = indent + rest.slice(end).trimStart();
  }
  return [...lines, rest];
}
