"""Guards of the speed that need no clock: counts of reads, commits, statements, hops and objects."""
