// Imported where a program or a worker begins: when stderr is full or nobody reads it, nobody can be told, and
// what is said there is lost. Nothing else changes, the exit status least of all.
process.stderr.on("error", () => {});
