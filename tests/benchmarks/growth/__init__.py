"""Growth: what each statement of the store costs with more stored tasks, and with more tasks in flight."""
