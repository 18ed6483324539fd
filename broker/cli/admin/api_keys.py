"""`broker keys`: API keys."""

from __future__ import annotations

from collections.abc import AsyncIterator

from broker.bootstrap import load_settings
from broker.cli.connection import Connection, Document, connect_broker, has_key, record_path
from broker.cli.console import print_json, print_line, print_note

PAGE = 100


async def add_key(name: str, *, owner: str | None, expires_in_days: int | None, as_json: bool) -> None:
    """Make a key and print it, alone on standard output."""
    given = {"name": name, "owner": owner, "expiresInDays": expires_in_days}
    async with connect_broker(makes_database=True) as broker:
        document = await broker.client.ask("POST", "/api/keys", json=given)
    if as_json:
        print_json(document)
        return
    key = document["data"]
    print_line(key["key"])
    print_note(f"This is the key {key['name']} ({key['id']}). It is not shown again: store it now.")
    if not has_key(load_settings()):
        print_note("From now on every request needs a key or a login, those from this machine, too.")


async def list_keys(*, as_json: bool) -> None:
    """Print all keys, newest first."""
    async with connect_broker() as broker:
        pages = [page async for page in _pages(broker)]
    if as_json:
        for page in pages:
            print_json(page)
        return
    keys = [key for page in pages for key in page["data"]]
    for key in keys:
        print_line(
            f"{key['id']}  {key['prefix']}…  {key['name']}  {key['owner'] or 'no user'}  created {key['createdAt']}  "
            f"{_describe_use(key)}  {_describe_expiry(key)}"
        )
    if not keys:
        print_note("No API keys.")


async def revoke_key(key: str, *, with_data: bool = False) -> None:
    """Revoke a key by its id or name. with_data: delete what it has made, if it belongs to no user."""
    async with connect_broker() as broker:
        params = {"withData": "true"} if with_data else {}
        await broker.client.ask("DELETE", record_path("keys", key), params=params)
    print_line(f"{key} is revoked.")


async def _pages(broker: Connection) -> AsyncIterator[Document]:
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": str(PAGE), **({"cursor": cursor} if cursor else {})}
        document = await broker.client.ask("GET", "/api/keys", params=params)
        yield document
        cursor = document["nextCursor"]


def _describe_use(key: Document) -> str:
    return f"last used {key['lastUsedAt']}" if key["lastUsedAt"] else "never used"


def _describe_expiry(key: Document) -> str:
    return f"expires {key['expiresAt']}" if key["expiresAt"] else "does not expire"
