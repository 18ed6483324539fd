"""Ordering: from an order request to durable tasks."""
