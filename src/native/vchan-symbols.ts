// The parts of csrc/xentool.h that move a vchan's bytes, vchan.c and stream.c; shim.ts checks and loads them.
export const vchanSymbols = {
  xt_vchan_sample: { args: ["ptr"], returns: "i32" },
  xt_vchan_read: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_vchan_write: { args: ["ptr", "ptr", "u32"], returns: "i32" },
  xt_vchan_fill: { args: ["ptr", "i32", "i32", "u32"], returns: "i32" },
  xt_vchan_drain: { args: ["ptr", "i32", "i32", "u32"], returns: "i32" },
  xt_vchan_take_request: { args: ["ptr", "u32"], returns: "i32" },
  xt_vchan_wait: { args: ["ptr", "ptr", "u32", "u32", "i32"], returns: "i32" },

  xt_stream_connect: { args: ["ptr", "i32"], returns: "i32" },
  xt_stream_listen: { args: ["ptr", "i32"], returns: "i32" },
  xt_stream_skip: { args: ["i32", "i32"], returns: "i32" },
  xt_stream_accept: { args: ["i32"], returns: "i32" },
  xt_stream_error: { args: ["i32"], returns: "i32" },
  xt_stream_end: { args: ["i32"], returns: "i32" },
  xt_stream_pipe: { args: ["ptr"], returns: "i32" },
  xt_stream_reopen: { args: ["i32", "i32"], returns: "i32" },
  xt_stream_discard: { args: ["i32"], returns: "i32" },
} as const;
