"""Benchmarks: one command each, side by side in one run, and a table in Markdown. None of them is a test."""
