"""The writing connection of a SQLite file: its process or thread, group commit, and what may keep it from writing."""
