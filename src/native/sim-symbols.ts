// The simulated platform's part of csrc/xentool.h; shim.ts checks and loads it.
const i32 = "i32" as const;
const u32 = "u32" as const;
const i64 = "i64" as const;
const f64 = "f64" as const;
const ptr = "ptr" as const;

export const simSymbols = {
  xt_sim_host_create: { args: [ptr, ptr], returns: i32 },
  xt_sim_domain_create: { args: [ptr, u32], returns: i32 },
  xt_sim_domain_destroy: { args: [ptr, u32], returns: i32 },
  xt_sim_open: { args: [ptr, u32, i32], returns: f64 },
  xt_sim_close: { args: [ptr], returns: i32 },
  xt_sim_crash: { args: [ptr], returns: i32 },
  xt_sim_reap: { args: [ptr, u32, u32], returns: i32 },
  xt_sim_sweep: { args: [ptr], returns: i32 },
  xt_sim_deliver: { args: [ptr], returns: i32 },
  xt_sim_list: { args: [ptr, ptr, u32], returns: i32 },

  xt_sim_evtchn_open: { args: [ptr, ptr], returns: i32 },
  xt_sim_evtchn_close: { args: [ptr, u32, i32], returns: i32 },
  xt_sim_evtchn_bind_interdomain: { args: [ptr, u32, u32, u32], returns: i32 },
  xt_sim_evtchn_bind_unbound: { args: [ptr, u32, u32], returns: i32 },
  xt_sim_evtchn_adopt_store: { args: [ptr, u32], returns: i32 },
  xt_sim_evtchn_unbind: { args: [ptr, u32, u32], returns: i32 },
  xt_sim_evtchn_notify: { args: [ptr, u32, u32], returns: i32 },
  xt_sim_evtchn_unmask: { args: [ptr, u32, u32], returns: i32 },

  xt_sim_grant_map: { args: [ptr, u32, ptr, u32, i32, i64, i64, ptr], returns: f64 },
  xt_sim_grant_unmap: { args: [ptr], returns: i32 },
  xt_sim_grant_copy: { args: [ptr, ptr, u32], returns: i32 },
  xt_sim_share: { args: [ptr, u32, u32, i32, i64, i64, ptr, ptr], returns: f64 },
  xt_sim_unshare: { args: [ptr], returns: i32 },
  xt_sim_own_page: { args: [ptr, u32], returns: f64 },
} as const;
