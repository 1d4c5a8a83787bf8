// The two ends of a handover (handover.ts) between processes: a `watch` starts its successor, from the path of its own
// executable and with its own words, and they talk through Bun's channel between processes.
import type {
  HandoverOrder,
  HandoverReport,
  Predecessor,
  Successor,
} from "../src/blkback/guests/handover.ts";
import { endsWithin, within } from "../src/core/deadline.ts";
import { XentoolError } from "../src/core/errors.ts";
import { toDomid, type Domid } from "../src/core/types.ts";
import { PROGRAM } from "./spawn-guest.ts";

/** Set for a successor alone. */
const SUCCESSOR = "XENTOOL_SUCCESSOR";
/** By this Bun finds its channel, which is not for our children. */
const CHANNEL = ["NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE"];

/** A guest whose disks are not served by then does not keep the next one waiting. */
const TAKEN_PATIENCE_MS = 1000;
/** A successor that has not even heard of a guest by then, or that all are its, hangs, and keeps none of them. */
const HEARD_PATIENCE_MS = 10_000;

/** What becomes of one guest. */
interface Take {
  readonly heard: PromiseWithResolvers<void>;
  readonly taken: PromiseWithResolvers<void>;
}

export interface StartedSuccessor extends Successor {
  readonly pid: number;
  /** Nothing more is asked of it. */
  letGo(): void;
  /** Resolves when it is gone. */
  kill(): Promise<unknown>;
}

/**
 * Where our executable was when we started, and where by now may be the one that has replaced it. Later the kernel
 * would name the place where ours was moved to.
 */
const OWN_PATH = process.execPath;

/** `environment` is added to ours. Throws when there is nothing to start. */
export function startSuccessor(environment: Readonly<Record<string, string>>): StartedSuccessor {
  const ready = Promise.withResolvers<void>();
  const serves = Promise.withResolvers<void>();
  const gone = Promise.withResolvers<never>();
  const takes = new Map<number, Take>();
  let says: string | undefined;
  for (const { promise } of [ready, gone]) promise.catch(() => {});
  const child = Bun.spawn([OWN_PATH, ...PROGRAM, ...Bun.argv.slice(2)], {
    env: { ...process.env, ...environment, [SUCCESSOR]: "1" },
    stdio: ["ignore", "inherit", "inherit"],
    serialization: "json",
    ipc: (report: HandoverReport) => {
      if ("ready" in report) {
        says = report.says;
        ready.resolve();
      } else if ("serves" in report) serves.resolve();
      else if ("heard" in report) takes.get(report.heard)?.heard.resolve();
      else takes.get(report.taken)?.taken.resolve();
    },
    onExit: () => {
      const error = new XentoolError("environment", "the next `watch` has ended");
      ready.reject(error);
      gone.reject(error);
    },
  });
  /** One that is gone, or goes now, is noticed by its end. */
  const send = (order: HandoverOrder): void => {
    if (child.exitCode === null && child.signalCode === null) child.send(order);
  };
  const hear = (answer: Promise<void>): Promise<void> => {
    const hangs = (): Error => new XentoolError("environment", "the next `watch` does not answer");
    return within(HEARD_PATIENCE_MS, Promise.race([answer, gone.promise]), hangs);
  };
  return {
    pid: child.pid,
    ready: ready.promise,
    gone: gone.promise,
    async take(frontend) {
      const take = { heard: Promise.withResolvers<void>(), taken: Promise.withResolvers<void>() };
      takes.set(frontend, take);
      send({ take: frontend });
      await hear(take.heard.promise);
      await endsWithin(TAKEN_PATIENCE_MS, Promise.race([take.taken.promise, gone.promise]));
    },
    async over() {
      send({ over: true });
      if (says === "serves") await hear(serves.promise);
    },
    letGo() {
      child.disconnect();
      child.unref();
    },
    kill() {
      child.kill("SIGKILL");
      return child.exited;
    },
  };
}

/** The one that started us to take over from it, if one did. */
export function takePredecessor(): Predecessor | undefined {
  const isSuccessor = process.env[SUCCESSOR] !== undefined;
  for (const name of [SUCCESSOR, ...CHANNEL]) delete process.env[name];
  if (!isSuccessor || process.send === undefined) return undefined;
  const over = Promise.withResolvers<void>();
  const letGo = Promise.withResolvers<void>();
  process.on("disconnect", () => {
    over.resolve();
    letGo.resolve();
  });
  const send = (report: HandoverReport): void => {
    if (process.connected) process.send?.(report);
  };
  return {
    over: over.promise,
    serves() {
      send({ serves: true });
      return letGo.promise;
    },
    ready(onTake: (frontend: Domid) => Promise<void>) {
      process.on("message", (order: HandoverOrder) => {
        if ("over" in order) return over.resolve();
        const frontend = toDomid(order.take);
        send({ heard: frontend });
        void onTake(frontend).then(() => send({ taken: frontend }));
      });
      send({ ready: true, says: "serves" });
    },
  };
}
