// The role of a guest's process on our command line. It is not for people, so it is no command.
export const GUEST_ROLE = "guest";
/** The first one after the standard streams: where its process takes descriptors. */
export const GUEST_DESCRIPTORS = 3;
