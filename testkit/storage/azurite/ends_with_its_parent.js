// Loaded before Azurite: it ends when its standard input does, which the process that started it holds and which closes however that ends.
process.stdin.on("close", () => process.exit()).resume();
