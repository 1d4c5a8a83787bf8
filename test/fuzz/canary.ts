// How a canary breaks what is fuzzed: the fuzzer must find it.

/** Puts what `breaks` makes of a method in its place, and returns a function that puts the method back. */
export function replace<T extends object, K extends keyof T>(
  prototype: T,
  name: K,
  breaks: (whole: T[K]) => T[K],
): () => void {
  const whole = prototype[name];
  prototype[name] = breaks(whole);
  return () => {
    prototype[name] = whole;
  };
}
