"""Callbacks from providers: the public URL that they reach, and receiving them."""
