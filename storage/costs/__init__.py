"""What orders cost: the ledger of all attempts, and the daily budgets."""
