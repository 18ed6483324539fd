"""Commands for accounts: users."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.commands.running import AsJson, run_command

app = typer.Typer()
users = typer.Typer(help="Add, list, change and delete users.", no_args_is_help=True)
app.add_typer(users, name="users")

UserName = Annotated[str, typer.Argument(metavar="NAME", help="As it is used to log in.")]
MustChange = Annotated[
    bool, typer.Option("--must-change", help="Serve nothing else before the user has changed the password.")
]
QuotaText = Annotated[str | None, typer.Option(metavar="LIMIT", help="A number, unlimited, or default.")]


@users.command("add")
def add_user(
    name: UserName,
    *,
    admin: Annotated[bool, typer.Option("--admin", help="May do what the operator's keys may.")] = False,
    email: Annotated[str | None, typer.Option(help="Optional.")] = None,
    must_change: MustChange = False,
    as_json: AsJson = False,
) -> None:
    """Add a user. The password is asked for, or read from standard input."""
    from broker.cli.admin.users import add_user

    run_command(add_user, name, email=email, is_admin=admin, must_change_password=must_change, as_json=as_json)


@users.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List all users, newest first."""
    from broker.cli.admin.users import list_users

    run_command(list_users, as_json=as_json)


@users.command("disable")
def disable_user(name: UserName) -> None:
    """End all sessions of a user, and refuse logins and API keys."""
    from broker.cli.admin.users import change_user

    run_command(change_user, name, "is disabled", isDisabled=True)


@users.command("enable")
def enable_user(name: UserName) -> None:
    """Let a disabled user log in again."""
    from broker.cli.admin.users import change_user

    run_command(change_user, name, "can log in again", isDisabled=False)


@users.command("password")
def set_password(name: UserName, *, must_change: MustChange = False) -> None:
    """Set a password, and end all sessions. It is asked for, or read from standard input."""
    from broker.cli.admin.users import set_password

    run_command(set_password, name, must_change=must_change)


@users.command("quota")
def change_quota(
    name: UserName,
    *,
    images: QuotaText = None,
    usd: QuotaText = None,
    in_flight: QuotaText = None,
    pins: QuotaText = None,
    stored: Annotated[str | None, typer.Option("--bytes", metavar="LIMIT", help="The same.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change the quota of a user: images and USD per day, tasks in flight, pins, stored bytes; or show it."""
    from broker.cli.admin.users import change_quota

    limits = {"images": images, "usd": usd, "inFlight": in_flight, "pins": pins, "bytes": stored}
    run_command(change_quota, name, limits, as_json=as_json)


@users.command("delete")
def delete_user(name: UserName, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete a user with all tasks, images and conversations. This cannot be undone."""
    from broker.cli.admin.users import delete_user

    run_command(delete_user, name, is_confirmed=yes)
