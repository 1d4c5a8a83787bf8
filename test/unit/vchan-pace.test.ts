// How fast one peer after another is served: on a clock of the test's own, in which nobody waits.
import { afterEach, beforeEach, expect, jest, spyOn, test } from "bun:test";
