// The part of csrc/xentool.h that serves sockets, socket.c; shim.ts checks and loads it.
export const socketSymbols = {
  xt_socket_receive: { args: ["i32", "ptr", "u32"], returns: "i32" },
  xt_socket_send: { args: ["i32", "ptr", "u32", "ptr", "u32"], returns: "i32" },
  xt_poll: { args: ["ptr", "u32", "i32"], returns: "i32" },
} as const;
