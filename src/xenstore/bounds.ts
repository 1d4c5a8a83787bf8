// The sizes and times of the xenstore client and server, with their reasons. What a domain may have of the server is
// in server/personality.ts, as each xenstored has it. test/unit/bounds.test.ts asserts how they depend on each other.

/** Approximate memory of a mark, in bytes. */
export const MARK_BYTES = 400;

/** As in C xenstored, events left unread for this long are discarded when new ones arrive. */
export const EVENT_AGE_MS_MAX = 20_000;

/** Approximate memory of what is kept in a list, a queued event or a logged request, besides its bytes. */
export const ENTRY_BYTES = 256;

/** Approximate memory of a node besides its value, and the addition for each child. */
export const NODE_BYTES = 400;
export const CHILD_BYTES = 64;

/**
 * After requests with this many payload bytes their garbage is collected. Left alone, the collector waits until there
 * is several times as much garbage as live data, and a flood of large values fills the memory before that.
 */
export const COLLECT_BYTES = 16 * 1024 * 1024;

/** Consecutive steps in a turn. A request is one step unless it is a long one. */
export const TURN_STEPS = 64;

/** Time that they may take, since one step can be a thousand times the work of another. */
export const TURN_MS = 2;

/** Maximum replays of a transaction: other clients may change the tree again during each of them. */
export const REPLAYS_MAX = 4;

/** How far the tree's turnover (StoreTree.turnover) may grow after a domain's newest snapshot, and after its others. */
export const NEWEST_LAG_MAX = 32 * 1024 * 1024;
export const LAG_MAX = 8 * 1024 * 1024;

/** Maximum consecutive reads before others get their turn: a guest can fill the ring as fast as it is read. */
export const PUMP_ROUNDS = 16;

/** Maximum attempts to list a directory in parts, since a change of the directory makes the listing start again. */
export const DIRECTORY_ATTEMPTS = 32;

/** Changed paths that wait for a watch's callback. When there are more, it gets the path that is watched instead. */
export const PENDING_PATHS_MAX = 1024;

/** How long a client waits for its first answer. */
export const CONNECT_TIMEOUT_MS = 5000;

/** How often a transaction that met others is tried again, and the longest pause before that. */
export const TRANSACTION_ATTEMPTS = 64;
export const BACKOFF_MS_MAX = 50;
