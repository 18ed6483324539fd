"""Conversations and their turns; what was written and made is in the tasks of the turns."""
