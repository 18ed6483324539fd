"""`broker users`: accounts. A password comes from a prompt or from standard input, never from an argument."""

from __future__ import annotations

import getpass
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from anyio import to_thread

from broker.cli.connection import Connection, Document, connect_broker, record_path
from broker.cli.console import CommandError, print_json, print_line, print_note

PAGE: Final = 100
DEFAULT: Final = "default"
UNLIMITED: Final = "unlimited"


async def add_user(name: str, *, email: str | None, is_admin: bool, must_change_password: bool, as_json: bool) -> None:
    """Add a user with a password that is read here."""
    given = {
        "username": name,
        "password": await _read_password(name),
        "email": email,
        "isAdmin": is_admin,
        "mustChangePassword": must_change_password,
    }
    async with connect_broker(makes_database=True) as broker:
        document = await broker.client.ask("POST", "/api/users", json=given)
    if as_json:
        print_json(document)
        return
    user = document["data"]
    print_line(f"{user['name']} can log in{' and is an admin' if user['isAdmin'] else ''}.")


async def list_users(*, as_json: bool) -> None:
    """Print all users, newest first."""
    async with connect_broker() as broker:
        pages = [page async for page in _pages(broker)]
    if as_json:
        for page in pages:
            print_json(page)
        return
    users = [user for page in pages for user in page["data"]]
    for user in users:
        print_line("  ".join(filter(None, _describe(user))))
    if not users:
        print_note("No users. `broker users add NAME --admin` adds the first one.")


async def change_user(name: str, done: str, **changes: Any) -> None:
    """Change a user, and say what was done."""
    user = await _change(name, changes)
    print_line(f"{user['name']} {done}.")


async def set_password(name: str, *, must_change: bool) -> None:
    """Set a password that is read here; all sessions of the user end."""
    password = await _read_password(name)
    user = await _change(name, {"password": password, "mustChangePassword": must_change})
    print_line(f"{user['name']} has a new password, and all sessions have ended.")


async def change_quota(name: str, limits: Mapping[str, str | None], *, as_json: bool) -> None:
    """Change limits of a user, or print them if none is given. limits: by name; a number, unlimited, or default."""
    given = {limit: _parse_limit(limit, text) for limit, text in limits.items() if text is not None}
    if given:
        user = await _change(name, {"quota": given})
    else:
        async with connect_broker() as broker:
            user = await find_user(broker, name)
    if as_json:
        print_json(user["quota"])
        return
    for limit in limits:
        print_line(f"{limit:<10} {user['quota'].get(limit, DEFAULT)}")


async def delete_user(name: str, *, is_confirmed: bool) -> None:
    """Delete a user with everything that the user has made."""
    if not is_confirmed:
        if not sys.stdin.isatty():
            raise CommandError("This deletes the account with everything in it: say so with --yes.")
        question = f"Delete {name} with all tasks, images and conversations? Type the name again: "
        if await to_thread.run_sync(input, question) != name:
            raise CommandError("Nothing was deleted.")
    async with connect_broker() as broker:
        user = await find_user(broker, name)
        await broker.client.ask("DELETE", record_path("users", user["id"]))
    print_line(f"{user['name']} is deleted.")


async def _change(name: str, changes: Mapping[str, Any]) -> Document:
    async with connect_broker() as broker:
        user = await find_user(broker, name)
        changed: Document = (await broker.client.ask("PATCH", record_path("users", user["id"]), json=dict(changes)))[
            "data"
        ]
    return changed


async def find_user(broker: Connection, name: str) -> Document:
    """Return the user of a name. Raises `CommandError` if there is none."""
    found = (await broker.client.ask("GET", "/api/users", params={"name": name}))["data"]
    if not found:
        raise CommandError("No user has this name: `broker users list` shows them.")
    user: Document = found[0]
    return user


async def _pages(broker: Connection) -> AsyncIterator[Document]:
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": str(PAGE), **({"cursor": cursor} if cursor else {})}
        document = await broker.client.ask("GET", "/api/users", params=params)
        yield document
        cursor = document["nextCursor"]


async def _read_password(name: str) -> str:
    """Return a password: typed twice, or the first line of standard input."""
    if not sys.stdin.isatty():
        line: str = await to_thread.run_sync(sys.stdin.readline)
        if not line.rstrip("\r\n"):
            raise CommandError("Standard input has no password: run this in a terminal, or send one line.")
        return line.rstrip("\r\n")
    first: str = await to_thread.run_sync(getpass.getpass, f"Password of {name}: ")
    if await to_thread.run_sync(getpass.getpass, "Again: ") != first:
        raise CommandError("The two are different: nothing was changed.")
    return first


def _parse_limit(name: str, text: str) -> float | int | str | None:
    if text in {DEFAULT, UNLIMITED}:
        return None if text == DEFAULT else UNLIMITED
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise CommandError(f"{name}: use a number, {UNLIMITED} or {DEFAULT}.") from None


def _describe(user: Document) -> list[str]:
    return [
        user["id"],
        user["name"],
        user["email"] or "",
        "admin" if user["isAdmin"] else "",
        "DISABLED" if user["isDisabled"] else "",
        "must change the password" if user["mustChangePassword"] else "",
        f"added {user['createdAt']}",
        f"last login {user['lastLoginAt']}" if user["lastLoginAt"] else "never logged in",
    ]
