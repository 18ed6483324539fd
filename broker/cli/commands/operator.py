"""Commands of the operator: callbacks, webhooks, providers, costs, secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.cli.commands.running import AsJson, Limit, Watch, run_command

app = typer.Typer()
callbacks = typer.Typer(help="List, show, replay and export callbacks from providers.")
app.add_typer(callbacks, name="callbacks")
webhooks = typer.Typer(help="List, show and replay webhooks to callers.")
app.add_typer(webhooks, name="webhooks")
secrets = typer.Typer(help="Replace the SECRET_KEY.", no_args_is_help=True)
app.add_typer(secrets, name="secrets")
providers = typer.Typer(help="List, pause and resume the providers in use.")
app.add_typer(providers, name="providers")

OfTask = Annotated[str | None, typer.Option(metavar="ID", help="Only of this task.")]
CallbackId = Annotated[str, typer.Argument(metavar="ID", help="Begins with callback_.")]
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="Begins with evt_.")]
ProviderName = Annotated[str, typer.Argument(metavar="NAME", help="Like kie or gemini.")]


@callbacks.callback(invoke_without_command=True)
def list_callbacks(
    context: typer.Context,
    *,
    task: OfTask = None,
    verification: Annotated[
        str | None, typer.Option(help="Only this result: accept, recheck, reject, unknown or malformed.")
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """List callbacks from providers, newest first, and count the missing ones."""
    if context.invoked_subcommand is not None:
        return
    from broker.cli.admin.callbacks import list_callbacks

    run_command(list_callbacks, task=task, verification=verification, limit=limit, as_json=as_json, watch=watch)


@callbacks.command("show")
def show_callback(callback_id: CallbackId, as_json: AsJson = False) -> None:
    """Show a callback: verification, headers and body."""
    from broker.cli.admin.callbacks import show_callback

    run_command(show_callback, callback_id, as_json=as_json)


@callbacks.command("replay")
def replay_callback(
    callback_id: CallbackId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Explain the effect and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Process a callback again with the current code. A rejected one is only explained."""
    from broker.cli.admin.callbacks import replay_callback

    run_command(replay_callback, callback_id, dry_run=dry_run, as_json=as_json)


@callbacks.command("export")
def export_callback(
    callback_id: CallbackId,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write. Default: print it.")] = None,
) -> None:
    """Export a callback as a test fixture. It contains the whole callback, prompt included."""
    from broker.cli.admin.callbacks import export_callback

    run_command(export_callback, callback_id, out=out)


@webhooks.callback(invoke_without_command=True)
def list_webhooks(
    context: typer.Context,
    *,
    task: OfTask = None,
    outcome: Annotated[str | None, typer.Option(help="Only this outcome, like pending, delivered or failed.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """List webhooks to callers, newest first, with their outcome."""
    if context.invoked_subcommand is not None:
        return
    from broker.cli.admin.webhooks import list_webhooks

    run_command(list_webhooks, task=task, outcome=outcome, limit=limit, as_json=as_json, watch=watch)


@webhooks.command("show")
def show_webhook(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Show a webhook: every attempt, and the body."""
    from broker.cli.admin.webhooks import show_webhook

    run_command(show_webhook, webhook_id, as_json=as_json)


@webhooks.command("replay")
def replay_webhook(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a webhook again."""
    from broker.cli.admin.webhooks import replay_webhook

    run_command(replay_webhook, webhook_id, as_json=as_json)


@webhooks.command("secret")
def print_secret(
    owner: Annotated[
        str | None, typer.Option(metavar="NAME", help="That of a user, or of an API key by its id. Default: yours.")
    ] = None,
) -> None:
    """Print the secret that signs webhooks. Give it to the receiver only."""
    from broker.cli.admin.webhooks import print_secrets

    run_command(print_secrets, owner)


@providers.callback(invoke_without_command=True)
def list_providers(context: typer.Context, *, as_json: AsJson = False, watch: Watch = False) -> None:
    """List the providers in use: for every key its limits, jobs in flight, cooldown, balance and error rate."""
    if context.invoked_subcommand is not None:
        return
    from broker.cli.admin.providers import list_providers

    run_command(list_providers, as_json=as_json, watch=watch)


@providers.command("pause")
def pause_provider(name: ProviderName, as_json: AsJson = False) -> None:
    """Submit nothing more to a provider. Its running jobs go on; queued orders go to another one, or wait."""
    from broker.cli.admin.providers import change_provider

    run_command(change_provider, name, "pause", as_json=as_json)


@providers.command("resume")
def resume_provider(name: ProviderName, as_json: AsJson = False) -> None:
    """Use a provider again. Ends the cooldowns of its keys, too."""
    from broker.cli.admin.providers import change_provider

    run_command(change_provider, name, "resume", as_json=as_json)


@app.command()
def costs(
    by: Annotated[str, typer.Option(help="What a row stands for: day, model, provider or user.")] = "day",
    since: Annotated[str | None, typer.Option(help="First day (UTC), like 2026-11-20. Default: 30 days ago.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what orders cost: estimated, billed, and of unknown billing."""
    from broker.cli.admin.costs import show_costs

    run_command(show_costs, by=by, since=since, as_csv=as_csv, as_json=as_json)


@secrets.callback()
def secret_commands() -> None:
    """Replace the SECRET_KEY."""


@secrets.command()
def rotate(
    *,
    drop_unreadable: Annotated[
        bool, typer.Option("--drop-unreadable", help="Delete the keys whose SECRET_KEY is lost.")
    ] = False,
) -> None:
    """Seal the provider keys of users again with the current SECRET_KEY. BROKER_OLD_SECRET_KEYS opens them."""
    from broker.cli.admin.secrets import rotate_secrets

    run_command(rotate_secrets, drop_unreadable=drop_unreadable)
