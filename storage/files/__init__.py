"""Files that callers uploaded before they order: finished ones, and uploads that arrive in several requests."""
