// JSON in which every character is printable ASCII: what a guest wrote may be shown on any terminal.

/** `value` as JSON, everything outside printable ASCII as \uXXXX. */
export function asciiJson(value: unknown, indent = 0): string {
  return JSON.stringify(value, undefined, indent).replaceAll(
    /[^\n\x20-\x7e]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
