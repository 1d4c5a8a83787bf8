// The simulated platform's part of csrc/xentool.h; shim.ts checks and loads it.
export const simSymbols = {} as const;
