// The options and positionals of a command: each is defined once, and its definition holds the type of its value, its
// help, and what completes it.

/** What may stand for a value, so that a shell can complete it. */
export type Completion = "file" | "directory" | "domain" | "vdev";

/** An option, or a positional; `T` is the type of its value. */
export interface Option<T> {
  readonly kind: "flag" | "count" | "number" | "text" | "texts" | "choice";
  readonly describe: string;
  readonly positional: boolean;
  readonly required: boolean;
  readonly initial: T | undefined;
  readonly alias: string | undefined;
  readonly choices: readonly (string | number)[];
  /** Of a number. */
  readonly range: Range | undefined;
  readonly complete: Completion | undefined;
  /** Whether `value`, which the parser returned, is of our type. */
  readonly accepts: (value: unknown) => value is T;
}

/** The numbers that there may be. */
export interface Range {
  readonly from: number;
  readonly to: number;
  readonly whole: boolean;
}

export type Options = Readonly<Record<string, Option<unknown>>>;

type Camel<S extends string> = S extends `${infer A}-${infer B}` ? `${A}${Capitalize<Camel<B>>}` : S;

/** The values of options: under their own names, and without the hyphens, as "dry-run" and dryRun. */
export type ValuesOf<O extends Options> = {
  readonly [K in keyof O & string as K | Camel<K>]: O[K] extends Option<infer T> ? T : never;
};

/** What an option may say beyond its description. Without `initial`, its value is undefined where it is not given. */
interface More<T> {
  readonly required?: true;
  readonly positional?: true;
  readonly initial?: T;
  readonly alias?: string;
  readonly complete?: Completion;
}
type Always<T> = { readonly required: true } | { readonly positional: true } | { readonly initial: T };
type Value<T, M> = M extends Always<T> ? T : T | undefined;

/** On or off; off where it is not given. */
export function flag(describe: string, more: Pick<More<boolean>, "alias"> = {}): Option<boolean> {
  return option("flag", describe, { ...more, initial: false }, isBoolean);
}

/** On, off, or undefined where it is not given. */
export function undecidedFlag(describe: string): Option<boolean | undefined> {
  return option("flag", describe, {}, orAbsent(isBoolean, {}));
}

/** How many times it is given. */
export function count(describe: string, alias: string): Option<number> {
  return option("count", describe, { alias }, isNumber);
}

/** A decimal number from `from` to `to`. */
export function number<const M extends More<number> = {}>(
  describe: string,
  from: number,
  to: number,
  more?: M,
  whole = false,
): Option<Value<number, M>> {
  const accepts = orAbsent<number, M>(isNumber, more);
  return { ...option("number", describe, more, accepts), range: { from, to, whole } };
}

/** A whole one. */
export function wholeNumber<const M extends More<number> = {}>(
  describe: string,
  from: number,
  to: number,
  more?: M,
): Option<Value<number, M>> {
  return number(describe, from, to, more, true);
}

/** "a whole number from 1 to 16". */
export function rangeText({ from, to, whole }: Range): string {
  return `a ${whole ? "whole " : ""}number from ${from} ${to === Infinity ? "on" : `to ${to}`}`;
}

/** A text that is not empty. */
export function text<const M extends More<string> = {}>(
  describe: string,
  more?: M,
): Option<Value<string, M>> {
  return option("text", describe, more, orAbsent<string, M>(isString, more));
}

/** A text that may be given again and again. */
export function texts(describe: string): Option<readonly string[]> {
  const initial: readonly string[] = [];
  return option("texts", describe, { initial }, isStrings);
}

/** One of `choices`. */
export function choice<const C extends string | number, const M extends More<NoInfer<C>> = {}>(
  choices: readonly C[],
  describe: string,
  more?: M,
): Option<Value<C, M>> {
  const isChoice = (value: unknown): value is C => choices.some((it) => it === value);
  return { ...option("choice", describe, more, orAbsent<C, M>(isChoice, more)), choices };
}

/** Whether `values`, which the parser returned, are those of `options`. */
export function areValuesOf<O extends Options>(options: O, values: unknown): values is ValuesOf<O> {
  const given = new Map(Object.entries(Object(values)));
  return Object.entries(options).every(([name, { accepts }]) => accepts(given.get(name)));
}

function option<T>(
  kind: Option<T>["kind"],
  describe: string,
  more: More<unknown> | undefined,
  accepts: (value: unknown) => value is T,
): Option<T> {
  const { required = false, positional = false, initial, alias, complete } = more ?? {};
  return {
    kind,
    describe,
    positional,
    required: required || positional,
    initial: accepts(initial) ? initial : undefined,
    alias,
    choices: [],
    range: undefined,
    complete,
    accepts,
  };
}

function orAbsent<T, M extends More<T>>(
  accepts: (value: unknown) => value is T,
  { required, positional, initial }: More<T> = {},
): (value: unknown) => value is Value<T, M> {
  const isAlways = required === true || positional === true || initial !== undefined;
  return (value): value is Value<T, M> => accepts(value) || (!isAlways && value === undefined);
}

function isBoolean(value: unknown): value is boolean {
  return typeof value === "boolean";
}

function isNumber(value: unknown): value is number {
  return typeof value === "number";
}

function isString(value: unknown): value is string {
  return typeof value === "string";
}

/** Whether `value` is a list of texts. */
export function isStrings(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every(isString);
}
