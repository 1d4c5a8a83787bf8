// The sizes and times of the block frontend and its NBD server, with their reasons. test/unit/bounds.test.ts asserts
// how they depend on each other.

/** The most queues that can be asked for: as many as our backend offers at most. */
export const MAX_QUEUES = 16;

/** Segments of our largest requests: what backends offer, and small enough to keep many in flight. */
export const DEFAULT_INDIRECT_SEGMENTS = 256;

/** Half of what one domain can share by default, so that a second device finds pages too. */
export const DEFAULT_POOL_PAGES = 480;

/** Nearly all of it, for a device that is benchmarked alone; the rest is for the largest rings of several queues. */
export const LARGE_POOL_PAGES = 896;

/** Enough for one request of 11 segments at a time, with some to spare. */
export const MIN_POOL_PAGES = 15;

/** The largest sector that a backend may name. */
export const MAX_SECTOR_BYTES = 65_536;

/** The default for how long the backend may take for each step of the handshake. */
export const BACKEND_TIMEOUT_MS = 10_000;

/** A device that another program claims is looked at again after this time. */
export const CLAIM_AGAIN_MS = 50;

/** When we are to stop, this much time is left for what is in flight. */
export const DRAIN_MS = 10_000;

/** How long a benchmark looks at its ring before it sleeps: about what a fast disk takes for one small read. */
export const BENCH_POLL_US_MAX = 200;

/** While there is work, turns of a benchmark between two checks whether to go on. */
export const BENCH_LOOK_EVERY = 64;

/** NBD connections. Each has up to 2.5 MiB for what is in flight, and next to nothing while it is idle. */
export const MAX_CONNECTIONS = 1024;

/** Connections accepted before others are served again. */
export const ACCEPTS_AT_ONCE = 16;

/** When there is no room for the next client, accepting resumes once a client has left, or after this time. */
export const ACCEPT_AGAIN_MS = 500;

/** Watched besides the connections: the rings' bell, control and listener. */
export const OTHER_WATCHES = 3;

/** How long the NBD server looks before it sleeps: short, because clients wait meanwhile and need the processor. */
export const NBD_POLL_US_MAX = 50;

/** A handshake takes milliseconds. One that takes this long makes room for others, if there is none. */
export const NBD_HANDSHAKE_MS = 3000;

/** More than any client needs in one option; NBD allows names of 4096 bytes. */
export const MAX_OPTION_BYTES = 8192;

/** A larger option is skipped and refused; above this size it ends the connection, as in QEMU's server. */
export const MAX_SKIPPED_BYTES = 32 << 20;

/** The largest reply to one option: names and descriptions are ours. */
export const MAX_REPLY_BYTES = 1024;

/** The most bytes that one read or write may carry, and what we recommend. */
export const MAX_BLOCK_BYTES = 32 << 20;
export const PREFERRED_BLOCK_BYTES = 4096;

/** A server that offers not to fragment reads must be able to send this much in one piece. */
export const MIN_WHOLE_READ_BYTES = 64 << 10;

/** What one connection has received and not carried out, and what it has not sent yet. */
export const INPUT_BYTES = 512 << 10;
export const OUTPUT_BYTES = 2 << 20;

/** The least to receive at a time, unless the buffer is too full. */
export const RECEIVE_BYTES = 64 << 10;

/** From this size on, data is sent from where it lies, if nothing else waits to be sent. */
export const DIRECT_BYTES = 32 << 10;

/** Commands at a time, of all connections and of one, which thus leaves some for the others. */
export const MAX_COMMANDS = 1024;
export const MAX_COMMANDS_PER_CONNECTION = 256;

/** Commands are cut into pieces of this size, each with its own pages. */
export const NBD_CHUNK_BYTES = 128 << 10;

/** Zeroes need no pages: this much of one command may be on the ring. */
export const ZEROES_CHUNK_BYTES = 1 << 20;
export const ZEROES_CHUNKS = 4;
