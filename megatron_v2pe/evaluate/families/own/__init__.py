"""Your own questions: a JSON lines file, named on the command line in place of a benchmark."""
