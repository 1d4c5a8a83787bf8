// The sizes and times of a vchan, with their reasons. test/unit/vchan-bounds.test.ts asserts how they depend on each
// other.

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

/** Descriptors that an end waits for: its event channel, the control page, the local input and output. */
export const WATCHES = 4;
