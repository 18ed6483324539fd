"""Accounts over HTTP: registration and login, one's own account, and the users for admins."""
