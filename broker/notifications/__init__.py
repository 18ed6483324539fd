"""Webhooks to callers: written into the outbox by the transaction that ends a task, delivered until they arrive."""
