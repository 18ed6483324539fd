"""Dialects, judged by the official SDKs; `python -m tests.dialects` prints the matrix of clients and providers."""
