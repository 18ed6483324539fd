"""Accounts: users, their sessions, tokens and API keys, and the principal that a secret stands for."""
