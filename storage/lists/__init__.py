"""Lists for callers and operators, in pages."""
