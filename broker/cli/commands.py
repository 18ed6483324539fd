"""Every command of `broker` with its options and help."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from broker.cli import ExitCode
from storage.file_modes import restrict_new_files

P = ParamSpec("P")

app = typer.Typer(
    help="A durable broker in front of Nano Banana image providers: nothing is lost, nothing is paid twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="Inspect and migrate the database.", no_args_is_help=True)
app.add_typer(db, name="db")
callbacks = typer.Typer(help="List, show, replay and export callbacks from providers.")
app.add_typer(callbacks, name="callbacks")
webhooks = typer.Typer(help="List, show and replay webhooks to callers.")
app.add_typer(webhooks, name="webhooks")
secrets = typer.Typer(help="Replace the SECRET_KEY.", no_args_is_help=True)
app.add_typer(secrets, name="secrets")
providers = typer.Typer(help="List, pause and resume the providers in use.")
app.add_typer(providers, name="providers")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one document per line.")]
Watch = Annotated[bool, typer.Option("--watch", help="Keep running and print each change.")]
OfTask = Annotated[str | None, typer.Option(metavar="ID", help="Only of this task.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="Number of entries.")]
CallbackId = Annotated[str, typer.Argument(metavar="ID", help="Begins with callback_.")]
WebhookId = Annotated[str, typer.Argument(metavar="ID", help="Begins with evt_.")]
ProviderName = Annotated[str, typer.Argument(metavar="NAME", help="Like kie or gemini.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")]


@app.command()
def demo() -> None:
    """Run one text-to-image and one image-to-image task over HTTP. No key, no network, no cost."""
    from broker.cli.demo import demo

    _run_command(demo)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: BROKER_HOST.")] = None,
    port: Port = None,
) -> None:
    """Run API, webhooks and worker in one process."""
    from broker.cli.serve import serve

    _run_command(serve, host, port)


@app.command()
def worker() -> None:
    """Run a worker without HTTP, in addition to `broker serve`."""
    from broker.cli.serve import run_worker

    _run_command(run_worker)


@app.command()
def sandbox(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on; every client that reaches it can read the jobs.")] = (
        "127.0.0.1"
    ),
    dialect: Annotated[str, typer.Option(help="The provider to emulate, like kie or replicate.")] = "kie",
    mood: Annotated[str, typer.Option(help="Faults on request, like lost or late:30,twice.")] = "good",
    moods: Annotated[bool, typer.Option("--moods", help="List every mood of the dialect and exit.")] = False,
    duration: Annotated[float, typer.Option(min=0, help="Duration of a job in seconds.")] = 1.0,
    credit: Annotated[float, typer.Option("--credits", min=0, help="Balance, in the provider's unit.")] = 1000.0,
    key: Annotated[str | None, typer.Option(help="The only API key accepted. Default: any.")] = None,
    webhook_key: Annotated[str | None, typer.Option(help="Webhook key, which signs the callbacks.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder for jobs and files. Default: memory only.")] = None,
) -> None:
    """Run the sandbox provider: an emulator of a provider's API, with faults on request."""
    from broker.cli.sandbox import list_moods, serve_alone
    from broker.sandbox.engine import Options

    if moods:
        _run_command(list_moods, dialect)
    options = Options(
        dialect=dialect,
        api_key=key,
        webhook_key=webhook_key,
        duration=duration,
        credits=credit,
        mood=mood,
        data_dir=data,
    )
    _run_command(serve_alone, host, port, options)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The image to make, or the change to the reference images.")],
    *,
    image: Annotated[list[Path] | None, typer.Option("-i", "--image", help="Reference image; repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File or folder to save to. Default: ./<task id>.<ext>")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Like nano-banana or nano-banana-pro.")] = None,
    aspect: Annotated[str | None, typer.Option(help="Like 1:1, 16:9 or auto.")] = None,
    resolution: Annotated[str | None, typer.Option(help="1K, 2K or 4K, if the model supports it.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=6, help="Number of images.")] = 1,
    provider: Annotated[str | None, typer.Option(help="The only provider that may get the order.")] = None,
    priority: Annotated[
        str | None, typer.Option(help="low, normal or high, among your own orders; low may be cheaper and slower.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show price, routes and request; order nothing.")] = False,
) -> None:
    """Make images and save them. Uses the running broker; without one, runs a broker for this command."""
    from broker.cli.generate import generate, show_dry_run

    run = partial(show_dry_run, prompt) if dry_run else partial(generate, prompt, out=out)
    chosen = {"model": model, "aspect_ratio": aspect, "resolution": resolution, "n": n}
    chosen |= {"provider": provider, "priority": priority}
    _run_command(partial(run, images=image or [], **chosen))


@app.command()
def mcp(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to save results to. Default: ~/nano-banana")
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, max=24, help="Longest wait of one call in seconds; then it returns the task id.")
    ] = 24,
) -> None:
    """Serve tools for agents over stdio (MCP): generate, edit, get_task, list_models. Uses the running broker."""
    from broker.cli.mcp import serve_mcp

    _run_command(serve_mcp, out=out, seconds=wait)


@app.command()
def task(
    task_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    attempts: Annotated[
        bool, typer.Option("--attempts", help="Show every attempt, and why each provider was or was not chosen.")
    ] = False,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """Show a task."""
    from broker.cli.tasks import show_attempts, show_task

    if attempts:
        _run_command(show_attempts, task_id, as_json=as_json)
    _run_command(show_task, task_id, as_json=as_json, watch=watch)


@app.command()
def tasks(
    status: Annotated[
        str | None, typer.Option(help="Only this status: pending, processing, completed, failed or canceled.")
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """List tasks, newest first."""
    from broker.cli.tasks import list_tasks

    _run_command(list_tasks, status=status, limit=limit, as_json=as_json, watch=watch)


@app.command()
def cancel(task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Cancel a task. A job that the provider has started may still be billed."""
    from broker.cli.tasks import cancel_task

    _run_command(cancel_task, task_id)


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

    _run_command(list_callbacks, task=task, verification=verification, limit=limit, as_json=as_json, watch=watch)


@callbacks.command("show")
def show_callback(callback_id: CallbackId, as_json: AsJson = False) -> None:
    """Show a callback: verification, headers and body."""
    from broker.cli.admin.callbacks import show_callback

    _run_command(show_callback, callback_id, as_json=as_json)


@callbacks.command("replay")
def replay_callback(
    callback_id: CallbackId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Explain the effect and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Process a callback again with the current code. A rejected one is only explained."""
    from broker.cli.admin.callbacks import replay_callback

    _run_command(replay_callback, callback_id, dry_run=dry_run, as_json=as_json)


@callbacks.command("export")
def export_callback(
    callback_id: CallbackId,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write. Default: print it.")] = None,
) -> None:
    """Export a callback as a test fixture. It contains the whole callback, prompt included."""
    from broker.cli.admin.callbacks import export_callback

    _run_command(export_callback, callback_id, out=out)


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

    _run_command(list_webhooks, task=task, outcome=outcome, limit=limit, as_json=as_json, watch=watch)


@webhooks.command("show")
def show_webhook(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Show a webhook: every attempt, and the body."""
    from broker.cli.admin.webhooks import show_webhook

    _run_command(show_webhook, webhook_id, as_json=as_json)


@webhooks.command("replay")
def replay_webhook(webhook_id: WebhookId, as_json: AsJson = False) -> None:
    """Send a webhook again."""
    from broker.cli.admin.webhooks import replay_webhook

    _run_command(replay_webhook, webhook_id, as_json=as_json)


@webhooks.command("secret")
def print_secret() -> None:
    """Print the secret that signs webhooks. Give it to the receiver only."""
    from broker.cli.admin.webhooks import print_secrets

    _run_command(print_secrets)


@providers.callback(invoke_without_command=True)
def list_providers(context: typer.Context, *, as_json: AsJson = False, watch: Watch = False) -> None:
    """List the providers in use: for every key its limits, jobs in flight, cooldown, balance and error rate."""
    if context.invoked_subcommand is not None:
        return
    from broker.cli.admin.providers import list_providers

    _run_command(list_providers, as_json=as_json, watch=watch)


@providers.command("pause")
def pause_provider(name: ProviderName, as_json: AsJson = False) -> None:
    """Submit nothing more to a provider. Its running jobs go on; queued orders go to another one, or wait."""
    from broker.cli.admin.providers import change_provider

    _run_command(change_provider, name, "pause", as_json=as_json)


@providers.command("resume")
def resume_provider(name: ProviderName, as_json: AsJson = False) -> None:
    """Use a provider again. Ends the cooldowns of its keys, too."""
    from broker.cli.admin.providers import change_provider

    _run_command(change_provider, name, "resume", as_json=as_json)


@app.command()
def costs(
    by: Annotated[str, typer.Option(help="What a row stands for: day, model, provider or user.")] = "day",
    since: Annotated[str | None, typer.Option(help="First day (UTC), like 2026-11-20. Default: 30 days ago.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what orders cost: estimated, billed, and of unknown billing."""
    from broker.cli.admin.costs import show_costs

    _run_command(show_costs, by=by, since=since, as_csv=as_csv, as_json=as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check settings, provider, credits, public URL, clock, disk and database, with a cure for each problem."""
    from broker.cli.doctor import run_doctor

    _run_command(run_doctor, as_json=as_json)


@app.command()
def cleanup() -> None:
    """Delete ended tasks above the retention time, and their images. Submits and polls nothing."""
    from broker.cli.maintenance import delete_expired

    _run_command(delete_expired)


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

    _run_command(rotate_secrets, drop_unreadable=drop_unreadable)


@db.command()
def upgrade() -> None:
    """Run missing migrations. Every start does so, too."""
    from broker.cli.maintenance import upgrade_database

    _run_command(upgrade_database)


@db.command()
def status() -> None:
    """Show migrations, versions, size and tasks by state."""
    from broker.cli.maintenance import show_database

    _run_command(show_database)


def main() -> None:
    restrict_new_files()
    app(prog_name="broker")


def _run_command(body: Callable[P, Awaitable[int | None]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Run the coroutine function of a command. Errors that a person can fix are one sentence without a traceback."""
    import anyio

    from broker.cli.console import explain_error, print_error

    try:
        code = anyio.run(partial(body, *args, **kwargs))
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BaseException as error:
        explanation = explain_error(error)
        if explanation is None:
            raise
        sentence, code = explanation
        print_error(sentence)
    raise typer.Exit(code or ExitCode.DONE)
