// The sizes and times of a vchan, with their reasons. test/unit/bounds.test.ts asserts how they depend on each other.

/**
 * The longest that a wait looks at the ring before it sleeps, in microseconds: about what a wakeup costs both sides
 * where wakeups are slow. If what it waits for takes longer than LOOK_PAYS_US on average, it sleeps at once.
 */
export const LOOK_US_MAX = 2000;
export const LOOK_PAYS_US = 250;

/**
 * While it looks, a wait also asks for other events, by system calls. Then it makes none for LOOK_CHECK_SHARE times as
 * long as they took (LOOK_CHECK_US_MAX counts at most) and LOOK_CHECK_US_MIN more.
 */
export const LOOK_CHECK_US_MIN = 5;
export const LOOK_CHECK_US_MAX = 100;
export const LOOK_CHECK_SHARE = 8;

/** The reactor's longest sleep, whose microseconds fit 31 bits. A longer wait ends early, as after a signal. */
export const SLEEP_MS_MAX = Math.floor((2 ** 31 - 1) / 1000);

/** Descriptors that an end waits for: its event channel, the control page, the local input and output. */
export const WATCHES = 4;

/** Moving less than a ring at a time lets both ends work at once; less than this is not worth a system call. */
export const RELAY_CHUNK_BYTES_MIN = 4096;

/**
 * While bytes move without a pause, the local descriptors are asked for after so many rounds: a system call for each 64
 * KiB or more, if rounds are as large as they may be.
 */
export const ASK_ROUNDS = 16;

/** A shared pipe that poll reports as writable takes this much without blocking (PIPE_BUF). */
export const SHARED_WRITE_BYTES = 4096;

/**
 * The default for how long a peer that cannot be told of our end may be silent before we close. For as long, a peer may
 * also leave the rest of what we sent unread while nobody takes what it sends.
 */
export const LINGER_MS = 5000;

/** How long we go on delivering what is in flight once we were told to stop, and a command may then take to exit. */
export const STOP_GRACE_MS = 1000;

/** Nothing tells us when what was written to another host has arrived there, so we ask this often. */
export const ARRIVED_LOOK_MS = 20;

/**
 * How long a command may take to exit after the vchan ended before it gets SIGTERM, and again before SIGKILL. A service
 * may take as long to end its connection.
 */
export const COMMAND_EXIT_MS = 2000;

/** A busy local service is tried again this often, for 5 seconds in all. */
export const BUSY_MS = 20;
export const BUSY_TRIES = 250;

/** After this, keys that have not changed are tried again: the server may have let another client go. */
export const RETRY_MS = 1000;

/**
 * For this long, a client that is not to wait for a server waits for one whose last client has gone: its command may
 * take twice COMMAND_EXIT_MS to end.
 */
export const TURN_MS = 5000;

/** What a peer can trigger repeatedly is delayed by PAUSE_MIN_MS, then twice as long each time, up to PAUSE_MAX_MS. */
export const PAUSE_MIN_MS = 100;
export const PAUSE_MAX_MS = 1000;

/** Between two queries to Xen: a dying domain takes a while to be gone. */
export const PROBE_INTERVAL_MS = 1500;

/** A server that removes its keys once it is connected does so within this time. */
export const KEYS_STAY_MS = 5000;

/** A server that closes may remove its keys first; it then has this long to report that it closed. */
export const CLOSING_MS = 1000;

/** The benchmark moves as much at once as any relay would, or half a ring. */
export const BENCH_CHUNK_BYTES = 128 * 1024;

/** Bytes or rounds of a benchmark's job. More than anyone needs: it bounds what a peer can request. */
export const BENCH_AMOUNT_MAX = 2 ** 50;
