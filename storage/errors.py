"""Errors of databases and blob stores. Every message names a cure, and no secret."""

from __future__ import annotations


class StorageError(Exception):
    """The store is locked, full or unreachable; the caller may try again later."""


class StorageFull(StorageError):
    """No space is left. Cure: free disk space, or shorten BROKER_RETENTION_HOURS."""


class DatabaseReplaced(StorageError):
    """The database's file was removed or replaced while it was open, so nothing written to it would last."""


class NoSuchTable(StorageError):
    """The database has no tables yet. Cure: `broker db upgrade`, or start the broker."""


class ForeignTables(StorageError):
    """The database belongs to another program, which has tables of the same names. Cure: a database of its own."""


class Stale(Exception):
    """A statement with `must_change` changed nothing, because the row had changed; the transaction is undone."""
