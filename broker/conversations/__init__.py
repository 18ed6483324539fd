"""Conversations: turns of a user, each answered by tasks, each going on from an earlier one.

A turn is added together with its tasks, which are held (`Task.is_held`) until the turn before it has ended. Then it is
known what it continues, and the tasks get it: the earlier turns for providers that keep a history, and the last image
for all others. So turns of one conversation are made in order, over all processes.
"""
