// Answers Prometheus over HTTP: one page. It is made on the thread that also looks after the disks, so at most once a
// second, however often somebody asks.
import { rmSync } from "node:fs";
import { XentoolError } from "../../core/errors.ts";
import { listenAt } from "../../native/unix-listener.ts";

export type MetricsAddress =
  | { readonly host: string; readonly port: number }
  | {
      /** Of a unix socket. */
      readonly path: string;
    };

const METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8";
const PATH = "/metrics";
const FRESH_MS = 1000;

/** Serves what `text` returns until it is disposed of. Throws `environment` when it cannot listen there. */
export function serveMetrics(at: MetricsAddress, text: () => string): Disposable & { readonly name: string } {
  const once = onceInAWhile(text);
  const fetch = (request: Request): Response => answer(request, once);
  const isUnix = "path" in at;
  const where = isUnix ? at.path : withPort(at.host, at.port);
  // Replaces a socket that a dead process left, and no other.
  if (isUnix) listenAt(at.path).close();
  let server: Bun.Server<undefined>;
  try {
    const common = { fetch, development: false, maxRequestBodySize: 0 };
    server = isUnix
      ? Bun.serve({ ...common, unix: at.path })
      : Bun.serve({ ...common, hostname: at.host, port: at.port });
  } catch (error) {
    throw new XentoolError("environment", `cannot listen at ${where}`, {}, error);
  }
  return {
    // Port 0 lets the host choose one.
    name: isUnix ? `unix:${where}` : `http://${withPort(at.host, server.port ?? at.port)}${PATH}`,
    [Symbol.dispose]: () => {
      void server.stop(true);
      if (isUnix) rmSync(at.path, { force: true });
    },
  };
}

/** What `text` returned at most FRESH_MS ago. */
function onceInAWhile(text: () => string): () => string {
  let made = "";
  let madeAtMs = -Infinity;
  return () => {
    if (performance.now() - madeAtMs < FRESH_MS) return made;
    made = text();
    madeAtMs = performance.now();
    return made;
  };
}

function withPort(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

function answer(request: Request, text: () => string): Response {
  if (request.method !== "GET" && request.method !== "HEAD")
    return new Response("only GET\n", { status: 405, headers: { Allow: "GET, HEAD" } });
  if (new URL(request.url).pathname !== PATH)
    return new Response(`metrics are at ${PATH}\n`, { status: 404 });
  return new Response(text(), { headers: { "Content-Type": METRICS_TYPE } });
}
