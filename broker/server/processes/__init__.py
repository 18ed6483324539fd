"""Several processes on one port: a supervisor that starts and restarts them, and the metrics of all of them."""
