"""Damaged files for every reader, and what has to come of each; see jobs/fuzz_readers.py."""
