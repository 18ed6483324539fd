"""Dialects: the APIs of others, one package each. They import what is shared, never each other."""
