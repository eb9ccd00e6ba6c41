"""The command line: parses, calls, prints. Imports lazily inside commands."""
