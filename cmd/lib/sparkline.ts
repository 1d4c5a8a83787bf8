// A row of numbers as bars, one character each.
const BARS = "▁▂▃▄▅▆▇█";

/** The last `width` of `values`, the largest of them as a full bar; 0 is a blank. Padded on the left. */
export function sparkline(values: readonly number[], width: number): string {
  const shown = values.slice(-width);
  const most = Math.max(...shown, 0);
  const bars = shown.map((value) =>
    value <= 0 || most === 0 ? " " : (BARS[Math.min(7, Math.ceil((value / most) * 8) - 1)] ?? " "),
  );
  return bars.join("").padStart(width);
}
