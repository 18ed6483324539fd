"""Every command of `broker`, its options, and how a command ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

DONE: Final = 0
NOT_DONE: Final = 1
WRONG_SETTINGS: Final = 2
INTERRUPTED: Final = 130

app = typer.Typer(
    help="A durable broker in front of Nano Banana image providers: nothing is lost, nothing is paid twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db = typer.Typer(help="The database: its state, and bringing it to today's shape.", no_args_is_help=True)
app.add_typer(db, name="db")
hooks = typer.Typer(help="Callbacks that came, and webhooks that went out: list, show, replay.")
app.add_typer(hooks, name="hooks")

AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs, one document per line.")]
Watch = Annotated[bool, typer.Option("--watch", help="Go on and show each change.")]
HookId = Annotated[str, typer.Argument(metavar="ID", help="hook_… came, evt_… went out.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for any free one.")]


@app.command()
def demo() -> None:
    """One text-to-image and one image-to-image task through real HTTP. No key, no network, no cost."""
    from broker.cli.demo import demo

    _run(demo)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: BROKER_HOST.")] = None,
    port: Port = None,
) -> None:
    """API, webhooks and worker in one process."""
    from broker.cli.serve import serve

    _run(serve, host, port)


@app.command()
def worker() -> None:
    """The worker alone, without HTTP: more of them help a busy `broker serve`."""
    from broker.cli.serve import work

    _run(work)


@app.command()
def sandbox(
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on, 0 for any free one.")] = 8001,
    host: Annotated[str, typer.Option(help="Address to listen on; its ledger is open to all who reach it.")] = (
        "127.0.0.1"
    ),
    mood: Annotated[str, typer.Option(help="How it misbehaves, like lost or late:30,twice.")] = "good",
    moods: Annotated[bool, typer.Option("--moods", help="List every mood, and stop.")] = False,
    duration: Annotated[float, typer.Option(min=0, help="Seconds a job takes.")] = 1.0,
    credit: Annotated[float, typer.Option("--credits", min=0, help="Credits on the account.")] = 1000.0,
    key: Annotated[str | None, typer.Option(help="The only API key accepted. Default: any.")] = None,
    webhook_key: Annotated[str | None, typer.Option(help="Sign callbacks with it, as kie.ai does.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that outlives a restart. Default: memory only.")] = None,
) -> None:
    """The sandbox provider alone: a pretend kie.ai that keeps its promises, or breaks them on request."""
    from broker.cli import sandbox as body

    if moods:
        body.list_moods()
        return
    _run(
        partial(
            body.sandbox,
            host=host,
            port=port,
            mood=mood,
            duration=duration,
            credits_=credit,
            api_key=key,
            webhook_key=webhook_key,
            data_dir=data,
        )
    )


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to paint, or what to change in the images given.")],
    *,
    image: Annotated[list[Path] | None, typer.Option("-i", "--image", help="A reference image; repeatable.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Where to save it. Default: ./<task id>.<ext>")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Like nano-banana or nano-banana-pro.")] = None,
    aspect: Annotated[str | None, typer.Option(help="Like 1:1, 16:9 or auto.")] = None,
    resolution: Annotated[str | None, typer.Option(help="1K, 2K or 4K, where the model has them.")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, max=6, help="How many images.")] = 1,
) -> None:
    """Make an image and save it. Uses the running broker, or is one for the moment if none runs."""
    from broker.cli.generate import Wish, generate

    wish = Wish(
        prompt=prompt,
        images=tuple(image or ()),
        out=out,
        model=model,
        aspect_ratio=aspect,
        resolution=resolution,
        count=n,
    )
    _run(generate, wish)


@app.command()
def task(task_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False, watch: Watch = False) -> None:
    """Show one task."""
    from broker.cli.tasks import show

    _run(partial(show, task_id, as_json=as_json, watch=watch))


@app.command()
def tasks(
    status: Annotated[
        str | None, typer.Option(help="Only pending, processing, completed, failed or canceled ones.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """List tasks, newest first."""
    from broker.cli.tasks import show_all

    _run(partial(show_all, status=status, limit=limit, as_json=as_json, watch=watch))


@app.command()
def cancel(task_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Cancel a task. What the provider has begun may still be billed."""
    from broker.cli.tasks import cancel

    _run(cancel, task_id)


@hooks.callback(invoke_without_command=True)
def list_hooks(
    context: typer.Context,
    *,
    task: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this task.")] = None,
    verdict: Annotated[
        str | None,
        typer.Option(
            help="Only accept, recheck, reject, unknown or malformed ones; with --sent an outcome, like failed."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    sent: Annotated[bool, typer.Option("--sent", help="Webhooks that went to callers, not callbacks that came.")] = (
        False
    ),
    as_json: AsJson = False,
    watch: Watch = False,
) -> None:
    """The inbox of callbacks, newest first: verdict, how long each took, and how many never came."""
    if context.invoked_subcommand is not None:
        return
    from broker.cli.hooks import list_all

    _run(partial(list_all, task=task, verdict=verdict, limit=limit, sent=sent, as_json=as_json, watch=watch))


@hooks.command("show")
def show_hook(hook_id: HookId, as_json: AsJson = False) -> None:
    """One of them whole: what it proved, headers, raw body."""
    from broker.cli.hooks import show

    _run(partial(show, hook_id, as_json=as_json))


@hooks.command("replay")
def replay_hook(
    hook_id: HookId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only explain what it would do.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let today's code read a callback again, or send a webhook again. What was refused is only explained."""
    from broker.cli.hooks import replay

    _run(partial(replay, hook_id, dry_run=dry_run, as_json=as_json))


@hooks.command("export")
def export_hook(
    hook_id: HookId,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Where to save it. Default: print it.")] = None,
) -> None:
    """A received callback as a test fixture. It holds what the callback held, like the prompt."""
    from broker.cli.hooks import export

    _run(partial(export, hook_id, out=out))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is wrong, and how to cure it: provider, key, credits, public address, clock, disk, database."""
    from broker.cli.doctor import doctor

    _run(partial(doctor, as_json=as_json))


@app.command()
def cleanup() -> None:
    """Retention now: delete ended tasks that are old enough, and their images. Orders no image, asks no provider."""
    from broker.cli.upkeep import cleanup

    _run(cleanup)


@hooks.command()
def secret() -> None:
    """Print what we sign webhooks to callers with. Give it to the receiver, and to nobody else."""
    from broker.cli.hooks_secret import show

    _run(show)


@db.command()
def upgrade() -> None:
    """Run the migrations that are missing. Every start does so, too."""
    from broker.cli.upkeep import upgrade

    _run(upgrade)


@db.command()
def status() -> None:
    """Migrations, versions, size, and tasks by state. Changes nothing."""
    from broker.cli.upkeep import status

    _run(status)


def main() -> None:
    app(prog_name="broker")


def _run(body: Callable[..., Awaitable[int | None]], *args: Any) -> None:
    """Run a command's body. What a person can mend is told in a sentence, without a traceback."""
    import anyio

    from broker.cli.screen import complain, explained

    try:
        code = anyio.run(partial(body, *args))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException as error:
        known = explained(error)
        if known is None:
            raise
        complain(known.sentence)
        code = known.exit_code
    raise typer.Exit(code or DONE)
