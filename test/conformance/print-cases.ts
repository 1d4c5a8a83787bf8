// The platform suite as lines for people and for `npm run conformance`, on standard error: `ok   CASE`, `FAIL: CASE: WHY`,
// and how many passed. The exit status is 1 when one failed.
import { PLATFORM_CASES, type TwoDomains } from "./platform-suite.ts";

export function printCases(domains: TwoDomains): void {
  let passed = 0;
  for (const [name, run] of Object.entries(PLATFORM_CASES)) {
    try {
      run(domains);
      passed++;
      console.error(`ok   ${name}`);
    } catch (error) {
      console.error(`FAIL: ${name}: ${error instanceof Error ? error.stack : String(error)}`);
      process.exitCode = 1;
    }
  }
  console.error(`${passed} cases passed`);
}
