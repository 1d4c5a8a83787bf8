// The sizes and times of a simulated host's own processes, with their reasons. test/unit/bounds.test.ts asserts how
// they depend on each other.

/** Between two looks whether everything that was used has been given back. */
export const SETTLE_STEP_MS = 5;
/** How long what uses a host may take to end once its command has; `serve` takes 10 s for a guest that clings. */
export const USERS_END_MS = 12_000;

/** When there was no descriptor left to attend to a domain, the host tries again after this time. */
export const ATTEND_AGAIN_MS = 10;

/** The longest line on the control socket, which bounds what a client that sends no line end costs. */
export const CONTROL_LINE_BYTES_MAX = 4096;

/** How long a tool waits for the host's answer. */
export const CONTROL_TIMEOUT_MS = 10_000;
/** How long each host may take to answer `sim list`. */
export const LIST_ANSWER_MS = 2000;

/** How long a host may take to start, or to stop: on a busy machine it takes seconds. */
export const DAEMON_START_MS = 15_000;

/** Between two looks whether a host that was told to stop is gone. */
export const DAEMON_STOP_STEP_MS = 10;

/** What is shown of the last words of a host that did not start. */
export const DAEMON_LOG_BYTES_MAX = 2000;
