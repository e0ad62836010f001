"""The command line: thin. Each command parses, calls one function of a room below, and shows what it returns."""
