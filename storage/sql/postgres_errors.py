"""Classes of Postgres errors, and their translation into the errors of `storage`."""

from __future__ import annotations

from typing import Final

import asyncpg

from storage.errors import NoSuchTable, StorageError, StorageFull

BROKEN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
    OSError,  # includes time-outs
)
"""The connection is gone; its last statement may have happened."""
UNDONE: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""Nothing happened, and a retry may succeed."""
UNAVAILABLE: Final = (*BROKEN, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)
"""No connection can be opened now."""

_CURES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        asyncpg.InvalidAuthorizationSpecificationError,
        "Postgres refuses the login ({}): check DATABASE_URL, or POSTGRES_…",
    ),
    (asyncpg.InvalidCatalogNameError, "Postgres refuses the login ({}): check DATABASE_URL, or POSTGRES_…"),
    (asyncpg.InsufficientPrivilegeError, "Postgres forbids it ({}): GRANT that to the user of DATABASE_URL"),
    (asyncpg.UndefinedObjectError, "Postgres does not know an object ({}): check the options of DATABASE_URL"),
)


class RetryableError(Exception):
    """An error after which the same work may be run once more. cause: the error of Postgres or the network."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


def storage_error(error: BaseException) -> StorageError:
    """Translate an error of Postgres; the message never has a value, which may be a prompt."""
    if isinstance(error, asyncpg.DiskFullError):
        return StorageFull("the disk of the database is full: free some space")
    if isinstance(error, asyncpg.UndefinedTableError):
        return NoSuchTable("the database has no tables yet: run broker db upgrade")
    for kind, cure in _CURES:
        if isinstance(error, kind):
            return StorageError(cure.format(error.args[0]))
    name = type(error).__name__
    if isinstance(error, asyncpg.PostgresError):
        return StorageError(f"the database cannot do it now ({name}, {error.sqlstate}): look at the log of Postgres")
    if isinstance(error, ValueError):
        return StorageError(
            f"the database takes no such value, or no such address ({name}): check DATABASE_URL, or POSTGRES_…"
        )
    return StorageError(
        f"the database cannot be reached ({name}): does Postgres run, is DATABASE_URL, or POSTGRES_…, right?"
    )
