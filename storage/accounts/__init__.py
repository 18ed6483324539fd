"""Users, their sessions and API keys; and whose rows a query may return."""
