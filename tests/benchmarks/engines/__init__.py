"""Measurements of single parts, each with a command of its own; the paths use some of them."""
