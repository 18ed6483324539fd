"""Routes for operators: the callback inbox and the delivery log."""
