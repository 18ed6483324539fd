"""Tasks: their states, the steps that change them, and reading them.

The circuit breaker is in `submissions`, with the queue that it pauses; leases are in `running`, with the steps that
hold them.
"""
