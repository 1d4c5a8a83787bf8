// Imported first: modules that ask for the current directory as they load (yargs does) must not fail when it has been
// removed. Absolute paths, and everything that needs no path, then work.
try {
  process.cwd();
} catch {
  process.chdir("/");
}
