// Packets in human-readable form, like strace's system calls. Everything from a guest is escaped and bounded, so that
// no terminal ever gets a control character from a guest.
import { escapeText } from "../core/log.ts";
import { readContent, typeText, type XsDirection, type XsHeader } from "../protocol/xs-content.ts";
import { XS_ERROR, XS_WATCH_EVENT } from "../protocol/xs-wire.ts";
import { STRINGS_MAX, STRING_LIMIT } from "./bounds.ts";

/** The text in printable ASCII, cut at `limit` characters. */
export function printable(text: string, limit = STRING_LIMIT): string {
  return `${escapeText(text.slice(0, limit), limit)}${text.length > limit ? "..." : ""}`;
}

/** Like `printable`, in double quotes as in C; the dots of a cut come after the closing quote. */
function quote(text: string, limit = STRING_LIMIT): string {
  const shown = printable(text.slice(0, limit), limit).replaceAll('"', '\\"');
  return `"${shown}"${text.length > limit ? "..." : ""}`;
}

/** `READ("name")`, plus the transaction if there is one. */
export function requestText(header: XsHeader, payload: Uint8Array, limit = STRING_LIMIT): string {
  const transaction = header.txId === 0 ? "" : `, tx ${header.txId}`;
  return `${typeText(header.type)}(${contentText("request", header.type, payload, limit)}${transaction})`;
}

/** What a reply returns: `"guest"`, `OK`, `ENOENT`. */
export function replyText(header: XsHeader, payload: Uint8Array, limit = STRING_LIMIT): string {
  const { values } = readContent("response", header.type, payload);
  if (header.type === XS_ERROR) return printable(values[0] ?? "", limit);
  if (values.length === 1 && values[0] === "OK") return "OK";
  return values.length === 0 ? "nothing" : contentText("response", header.type, payload, limit);
}

/** A response on its own: a watch event, or the reply to a request that was not seen. */
export function responseText(header: XsHeader, payload: Uint8Array, limit = STRING_LIMIT): string {
  return header.type === XS_WATCH_EVENT
    ? `WATCH_EVENT(${contentText("response", header.type, payload, limit)})`
    : `${typeText(header.type)} = ${replyText(header, payload, limit)}`;
}

function contentText(direction: XsDirection, type: number, payload: Uint8Array, limit: number): string {
  const { path, values } = readContent(direction, type, payload);
  const strings = path === undefined ? values : [path, ...values];
  const more = strings.length > STRINGS_MAX ? `, ... ${strings.length - STRINGS_MAX} more` : "";
  return `${strings
    .slice(0, STRINGS_MAX)
    .map((text) => quote(text, limit))
    .join(", ")}${more}`;
}
