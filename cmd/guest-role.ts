// The role of a guest's process on our command line. It is not for people, so it is no command.
export const GUEST_ROLE = "guest";
/** After the standard streams: where its process takes descriptors, and its way to xenstore. */
export const GUEST_SOCKETS = { descriptors: 3, xenstore: 4 };
