"""The `compress` command: parse, call, print."""
