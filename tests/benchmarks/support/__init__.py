"""Parts of the benchmark: processes, load, the pretend provider, stored tasks, the table."""
