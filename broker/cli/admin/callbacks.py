"""`broker callbacks`: the inbox of callbacks from providers."""

from __future__ import annotations

from pathlib import Path

import anyio

from broker.cli import ExitCode
from broker.cli.connection import Document, connect_broker, record_path, show_document
from broker.cli.console import format_json, print_facts, print_json, print_line, print_note


async def list_callbacks(*, task: str | None, verification: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """Print the newest callbacks and the number of missing ones; with `watch` again after each change."""
    filters = {"task": task, "verification": verification, "limit": limit}
    await show_document("/api/callbacks", _print_callbacks, as_json=as_json, watch=watch, filters=filters)


async def show_callback(callback_id: str, *, as_json: bool) -> None:
    await show_document(record_path("callbacks", callback_id), _print_callback, as_json=as_json)


async def replay_callback(callback_id: str, *, dry_run: bool, as_json: bool) -> int:
    """Process a callback again; NOT_DONE if its verification forbids it."""
    async with connect_broker() as broker:
        document = await broker.client.ask(
            "POST", f"{record_path('callbacks', callback_id)}/replay", params={"dryRun": "true"} if dry_run else {}
        )
        if document["data"]["replayed"] and not broker.is_running:
            print_note("No broker answers at BROKER_HOST and BROKER_PORT: the next worker processes it.")
    print_json(document) if as_json else _print_replay(document["data"])
    return ExitCode.DONE if dry_run or document["data"]["replayed"] else ExitCode.NOT_DONE


async def export_callback(callback_id: str, *, out: Path | None) -> None:
    """Print a callback as a test fixture, or write it to a file."""
    async with connect_broker() as broker:
        document = await broker.client.ask("GET", f"{record_path('callbacks', callback_id)}/fixture")
    if document["bodyTruncated"]:
        print_note("Only the beginning of its body is stored, so it cannot serve as a fixture.")
    if out is None:
        print(format_json(document))
        return
    await anyio.Path(out).write_text(format_json(document) + "\n", "utf-8")
    print_note(f"{out} is written. It contains the whole callback, prompt included: review it before you share it.")


def _print_callbacks(document: Document) -> None:
    for callback in document["data"]:
        replay = f" (replay of {callback['replayOf']})" if "replayOf" in callback else ""
        lag = "" if callback["lagSeconds"] is None else f"lag {callback['lagSeconds']:g} s"
        print_line(
            f"{callback['id']}  {callback['receivedAt']}  {callback['verification']:<9} {callback['status']}  "
            f"{lag:<14}  {_describe_task(callback) or 'no task'}  {callback['reason']}{replay}"
        )
    if not document["data"]:
        print_note("No callbacks.")
    missing = document["missing"]
    if count := missing["count"]:
        noun = "callback" if count == 1 else "callbacks"
        print_line(f"{count} {noun} did not arrive in the last {missing['hours']:g} hours.", style="yellow")
        print_note("Those tasks ended all the same, by polling. See README, Troubleshooting.")


def _print_callback(document: Document) -> None:
    callback = document["data"]
    lag, evidence = callback["lagSeconds"], callback["evidence"] or {}
    proofs = [f"{name}: {evidence[name]}" for name in ("token", "signature") if evidence]
    proofs += ["from a trusted caller"] if evidence.get("trusted") else []
    print_facts(
        {
            "callback": callback["id"],
            "provider": callback["provider"],
            "task": _describe_task(callback),
            "owner": callback["owner"],
            "result": _describe_verification(callback),
            "evidence": ", ".join(proofs),
            "received": callback["receivedAt"],
            "lag": None if lag is None else f"{lag:g} s after the end of the job",
            "processed": callback["processedAt"],
            "replay of": callback.get("replayOf"),
            "query": " ".join(f"{name}={value}" for name, value in (callback["query"] or {}).items()),
        }
    )
    if callback["withheld"]:
        print_note("Query, headers and body are the content of another account, and not shown.")
        return
    for name, value in callback["headers"].items():
        print_line(f"{'header':<10} {name}: {value}")
    print_line()
    print_line(callback["body"])
    if callback["bodyTruncated"]:
        print_note("Only the beginning of the body is stored: it carried no proof of its origin, or was too large.")


def _print_replay(replay: Document) -> None:
    is_downgraded = replay["replayedAs"] != replay["verification"]
    print_facts(
        {
            "callback": replay["id"],
            "names": ", ".join(replay["names"] or ()),
            "task": _describe_task(replay) or "unknown",
            "owner": replay["owner"],
            "report": replay["report"],
            "result": _describe_verification(replay),
            "was": _describe_verification(replay["was"]),
            "replayed": f"as {replay['replayedAs']}" if replay["replayedAs"] and is_downgraded else None,
            "effect": replay["effect"],
        }
    )
    if replay["dryRun"]:
        print_line("Nothing was changed.")
    elif replay["replayed"]:
        print_line(f"Replayed as {replay['replayId']}.")
    else:
        print_line("It was not replayed.", style="yellow")


def _describe_task(callback: Document) -> str | None:
    if not callback["taskId"]:
        return None
    return str(callback["taskId"]) + (f"/{callback['attempt']}" if callback["attempt"] is not None else "")


def _describe_verification(record: Document) -> str:
    return f"{record['verification']} ({record['status']}): {record['reason']}"
