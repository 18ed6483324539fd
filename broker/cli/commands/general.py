"""Commands that run the broker, order images, and check and maintain an installation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.commands.running import AsJson, run_command, run_service

app = typer.Typer()
db = typer.Typer(help="Inspect and migrate the database.", no_args_is_help=True)
app.add_typer(db, name="db")

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")]


@app.command()
def demo() -> None:
    """Run one text-to-image and one image-to-image task over HTTP. No key, no network, no cost."""
    from broker.cli.demo import demo

    run_command(demo)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: BROKER_HOST.")] = None,
    port: Port = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processes; above 1 needs Postgres. Default: WORKERS.")
    ] = None,
) -> None:
    """Run API, webhooks and worker in one process, or in several."""
    from broker.cli.serve import serve

    run_service(serve, host, port, workers)


@app.command()
def worker() -> None:
    """Run a worker without HTTP, in addition to `broker serve`."""
    from broker.cli.serve import run_worker

    run_service(run_worker)


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
        run_command(list_moods, dialect)
    options = Options(
        dialect=dialect,
        api_key=key,
        webhook_key=webhook_key,
        duration=duration,
        credits=credit,
        mood=mood,
        data_dir=data,
    )
    run_command(serve_alone, host, port, options)


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
    run_command(partial(run, images=image or [], **chosen))


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

    run_command(serve_mcp, out=out, seconds=wait)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check settings, provider, credits, public URL, clock, disk and database, with a cure for each problem."""
    from broker.cli.doctor import run_doctor

    run_command(run_doctor, as_json=as_json)


@app.command()
def cleanup() -> None:
    """Delete ended tasks above the retention time, and their images. Submits and polls nothing."""
    from broker.cli.maintenance import delete_expired

    run_command(delete_expired)


@db.command()
def upgrade() -> None:
    """Run missing migrations. Every start does so, too."""
    from broker.cli.maintenance import upgrade_database

    run_command(upgrade_database)


@db.command()
def status() -> None:
    """Show migrations, versions, size and tasks by state."""
    from broker.cli.maintenance import show_database

    run_command(show_database)
