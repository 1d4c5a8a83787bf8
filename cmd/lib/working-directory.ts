// Imported before all else: modules that ask for the current directory as they load (yargs does) must not fail
// where it has been removed. Absolute paths and everything without paths then work.
try {
  process.cwd();
} catch {
  process.chdir("/");
}
