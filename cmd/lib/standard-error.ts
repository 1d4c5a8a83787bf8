// Imported at the start of a program or a worker. When stderr is full or has no reader, there is nobody to report
// that to, and messages are lost. Nothing else changes, least of all the exit status.
process.stderr.on("error", () => {});
