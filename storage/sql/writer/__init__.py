"""The writing connection of a SQLite file: its thread, group commit, and what may keep it from writing."""
