"""What dialects share: held answers, images in JSON, task errors, and the routes that two of them have in common.

A dialect imports from here, never from another dialect.
"""
