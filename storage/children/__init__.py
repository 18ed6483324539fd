"""Child processes: programs of ours that compute beside the event loop, which shares its GIL with every thread."""
