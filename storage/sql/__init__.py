"""Databases that the nouns of `storage` are kept in: one contract, SQLite and Postgres, and the migrations."""
