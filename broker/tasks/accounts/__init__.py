"""Accounts at providers: the operator's, and those of users, which are opened when a task needs them."""
