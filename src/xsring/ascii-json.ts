// JSON in printable ASCII only, so that what a guest wrote can be shown on any terminal.

/** `value` as JSON, with everything outside printable ASCII as \uXXXX. */
export function asciiJson(value: unknown, indent = 0): string {
  return JSON.stringify(value, undefined, indent).replaceAll(
    /[^\n\x20-\x7e]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
