"""Notifications: the webhooks that callers receive."""
