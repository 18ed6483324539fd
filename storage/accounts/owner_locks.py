"""Locks of owners: transactions that count what an owner has wait for each other."""

from __future__ import annotations

from storage.ids import USER_ID
from storage.sql.database import Statement


def lock_owner_account(owner: str) -> Statement:
    """Lock the row of a user, or of an API key without a user, until the transaction ends.

    A statement after it sees what the transactions before it have committed. Without such a row nothing is locked: the
    operator has no limits, and an account that was deleted sends no more requests.
    """
    table = "users" if USER_ID.fullmatch(owner) else "api_keys"
    return Statement(sql=f"UPDATE {table} SET name = name WHERE id = :id", params={"id": owner})
