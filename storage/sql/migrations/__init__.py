"""Numbered SQL files, forward only, one purpose each. The same text runs on every database."""
