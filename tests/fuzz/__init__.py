"""Fuzzing of everything that reads untrusted text or bytes."""
