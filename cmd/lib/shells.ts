// The shells that we can tell how to complete. Apart from their scripts, because help needs no more than this.
export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];
