"""Data sets encoded again: small, quick to read, safe to interrupt."""
