"""Callbacks: what providers send to us."""
