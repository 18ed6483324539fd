"""Limits that all processes share: of the providers' keys, of each caller's rate and usage, and the daily budget."""
