"""What people could pick instead, measured in the same run as the broker: `make bench-peers`."""
