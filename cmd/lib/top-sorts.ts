// What `xentool top` can sort by. Apart from top-screen.ts, because the command's help needs no more than this.
export const SORTS = ["load", "bytes", "latency", "waiting", "name"] as const;
export type Sort = (typeof SORTS)[number];
