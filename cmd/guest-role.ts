// The role of a guest's process on our command line. It is not for people, so it is not one of the commands.
export const GUEST_ROLE = "guest";
/** After the standard streams: where its process takes descriptors, and its way to xenstore. */
export const GUEST_SOCKETS = { descriptors: 3, xenstore: 4 };
