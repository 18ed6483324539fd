"""Commands for accounts: API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.commands.running import AsJson, run_command

app = typer.Typer()
keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for, like laptop.")],
    *,
    owner: Annotated[
        str | None, typer.Option(metavar="USER", help="User whose rights it has. Default: none, with tasks of its own.")
    ] = None,
    expires: Annotated[int | None, typer.Option(metavar="DAYS", min=1, help="Days until it expires.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it once."""
    from broker.cli.admin.api_keys import add_key

    run_command(add_key, name, owner=owner, expires_in_days=expires, as_json=as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List all API keys: prefix, name, user, creation, last use, expiry."""
    from broker.cli.admin.api_keys import list_keys

    run_command(list_keys, as_json=as_json)


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its id or name; not the key itself.")],
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Delete everything that a key without a user has made, too.")
    ] = False,
) -> None:
    """Revoke an API key: requests with it are refused from now on."""
    from broker.cli.admin.api_keys import revoke_key

    run_command(revoke_key, key, with_data=with_data)
