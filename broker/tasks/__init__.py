"""Tasks: their states, the steps that change them, and reading them."""
