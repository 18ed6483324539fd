"""Commands of the operator: received callbacks and sent webhooks."""
