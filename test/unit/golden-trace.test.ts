// test/traces/record.ts: what `xsring trace` saw of a frontend becomes a golden trace, and a recording that is not
// whole does not.
import { expect, test } from "bun:test";
import { goldenTrace } from "../traces/record.ts";

const BACKEND = "/local/domain/0/backend/vbd/7/51728";
const FRONTEND = "device/vbd/51728";

interface Said {
  readonly type: string;
  readonly path?: string;
  readonly values?: readonly string[];
  readonly txId?: number;
}

let reqId = 0;

/** A request and the values or the error that answer it, as `xsring trace --json` writes them. */
function exchange({ type, path, values = [], txId = 0 }: Said, answer: readonly string[] | Error): string[] {
  const request = { type, reqId: ++reqId, txId, values, ...(path === undefined ? {} : { path }) };
  const reply =
    answer instanceof Error ? { type: "ERROR", values: [answer.message] } : { type, values: answer };
  return [
    JSON.stringify({ event: "request", ...request }),
    JSON.stringify({ event: "reply", ...reply, request }),
  ];
}

const read = (path: string, value: string): string[] => exchange({ type: "READ", path }, [value]);
const write = (key: string, value: string, txId = 0): string[] =>
  exchange({ type: "WRITE", path: `${FRONTEND}/${key}`, values: [value], txId }, ["OK"]);
const mark = (text: string): string[] =>
  exchange({ type: "WRITE", path: "data/trace", values: [text] }, ["OK"]);
const commit = (txId: number, answer: readonly string[] | Error = ["OK"]): string[] =>
  exchange({ type: "TRANSACTION_END", values: ["T"], txId }, answer);
const lost = (direction: string): string[] => [JSON.stringify({ event: "lost", direction, bytes: 40 })];
const golden = (...events: string[][]): string[] => goldenTrace(events.flat().join("\n"), "51728");

test("a disk that comes and goes", () => {
  const offer = (txId: number): string[][] => [
    write("multi-queue-num-queues", "2", txId),
    write("queue-0/ring-ref", "8", txId),
    write("queue-0/event-channel", "11", txId),
    write("queue-1/ring-ref", "9", txId),
    write("queue-1/event-channel", "12", txId),
  ];
  expect(
    golden(
      read(`${BACKEND}/state`, "1"),
      read(`${BACKEND}/state`, "2"),
      read(`${BACKEND}/multi-queue-max-queues`, "4"),
      read("/local/domain/0/backend/vbd/7/51712/state", "4"),
      exchange({ type: "READ", path: `${BACKEND}/feature-x` }, new Error("ENOENT")),
      ...offer(1),
      commit(1, new Error("EAGAIN")),
      ...offer(2),
      commit(2),
      write("state", "3", 3),
      commit(3),
      read(`${BACKEND}/state`, "4"),
      write("state", "4"),
      mark("io"),
      read(`${BACKEND}/state`, "5"),
      write("state", "5"),
      write("state", "6"),
    ),
  ).toEqual([
    "offers queues 4",
    "backend 2",
    "reads multi-queue-max-queues",
    "rings 2 0",
    "begin",
    "write multi-queue-num-queues 2",
    "write queue-0/ring-ref page(0,0)",
    "write queue-0/event-channel port(0)",
    "write queue-1/ring-ref page(1,0)",
    "write queue-1/event-channel port(1)",
    "commit",
    "state 3",
    "backend 4",
    "state 4",
    "io",
    "toolstack closes",
    "backend 5",
    "state 5",
    "state 6",
    "ends closed",
  ]);
});

test("rings outside a transaction are refused: how large they are is not known before they are written", () => {
  expect(() => golden(write("ring-ref0", "8"))).toThrow("outside a transaction");
});

test("replies seen after the next requests stand where they were asked for; a state that nobody waited for is left out", () => {
  const [asked, answered] = read(`${BACKEND}/state`, "2");
  expect(golden([asked], write("state", "3"), [answered], read(`${BACKEND}/state`, "3"))).toEqual([
    "offers queues 1",
    "backend 2",
    "state 3",
    "backend 3",
  ]);
  expect(golden(read(`${BACKEND}/state`, "2"), read(`${BACKEND}/state`, "4"), mark("io"))).toEqual([
    "offers queues 1",
    "backend 4",
    "io",
  ]);
});

test("what passed unseen of the disk makes it no trace", () => {
  const [asked] = read(`${BACKEND}/sectors`, "8");
  expect(() => golden(write("state", "1"), lost("request"))).toThrow("requests passed unseen");
  expect(() => golden([asked], lost("response"))).toThrow("replies passed unseen");
  expect(golden(lost("request"), write("state", "1"), lost("response"), mark("io"))).toEqual([
    "offers queues 1",
    "state 1",
    "io",
  ]);
});
