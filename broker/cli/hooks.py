"""`broker hooks`: callbacks that came from providers, and webhooks that went to callers. Ids tell which is which."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from broker.cli.screen import Unable, clear, note, say, say_json
from broker.cli.shelf import Doors, Shelf, doors, looks

Document = dict[str, Any]


async def list_all(
    *, task: str | None, verdict: str | None, limit: int, sent: bool, as_json: bool, watch: bool
) -> None:
    """The newest ones; when watching, again after every change."""
    path, outcome = ("/api/deliveries", "outcome") if sent else ("/api/callbacks", "verification")
    wanted = {"task": task, outcome: verdict, "limit": str(limit)}
    params = {name: value for name, value in wanted.items() if value is not None}
    async with doors() as broker:
        async for document in looks(lambda: broker.ask("GET", path, params=params), watch):
            if as_json:
                say_json(document)
                continue
            if watch:
                clear()
            _list_sent(document["data"]) if sent else _list_received(document)


async def show(hook_id: str, *, as_json: bool) -> None:
    async with doors() as broker:
        document = await broker.ask("GET", _path(hook_id))
    if as_json:
        say_json(document)
    elif _was_sent(hook_id):
        _tell_sent(document["data"])
    else:
        _tell_received(document["data"])


async def replay(hook_id: str, *, dry_run: bool, as_json: bool) -> int:
    """0, or 1 if it could not be taken in."""
    if _was_sent(hook_id):
        if dry_run:
            raise Unable("--dry-run explains what a received callback would do; sending has nothing to explain.")
        async with doors() as broker:
            document = await broker.ask("POST", f"{_path(hook_id)}/replay")
        say_json(document) if as_json else say(f"{hook_id} will be sent again.")
        return 0
    async with doors() as broker:
        document = await _replayed(broker, hook_id, dry_run)
    say_json(document) if as_json else _explain(document["data"])
    return int(not dry_run and not document["data"]["replayed"])


async def _replayed(broker: Doors, hook_id: str, dry_run: bool) -> Document:
    params = {"dryRun": "true"} if dry_run else {}
    document: Document = await broker.ask("POST", f"{_path(hook_id)}/replay", params=params)
    if isinstance(broker, Shelf) and document["data"]["replayed"]:
        note("No broker answers at BROKER_HOST and BROKER_PORT: the one that works on this database takes its news in.")
    return document


async def export(hook_id: str, *, out: Path | None) -> None:
    """As a test fixture, to standard output or into a file."""
    if _was_sent(hook_id):
        raise Unable("Only received callbacks (hook_…) can be exported.")
    async with doors() as broker:
        document = await broker.ask("GET", f"{_path(hook_id)}/fixture")
    text = _written(document)
    if out is None:
        print(text)
    else:
        _save(out, text)


def _written(document: Any) -> str:
    """JSON that a terminal can show: what could steer it is escaped."""
    text = json.dumps(document, ensure_ascii=False, indent=2)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _save(out: Path, text: str) -> None:
    try:
        out.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise Unable(f"{out} cannot be written: {error.strerror}.") from None
    note(f"{out} is written. It holds what the callback held, like the prompt: look at it before you share it.")


def _was_sent(hook_id: str) -> bool:
    return hook_id.startswith("evt_")


def _path(hook_id: str) -> str:
    if not re.fullmatch(r"(hook|evt)_[0-9A-Za-z_-]{1,100}", hook_id):
        raise Unable("An id of a received callback begins with hook_, that of a sent webhook with evt_.")
    return f"/api/deliveries/{hook_id}" if _was_sent(hook_id) else f"/api/callbacks/{hook_id}"


# -- what came


def _list_received(document: Document) -> None:
    for hook in document["data"]:
        task = f"{hook['taskId']}{_attempt(hook)}" if hook["taskId"] else "no task"
        replayed = f" (replay of {hook['replayOf']})" if "replayOf" in hook else ""
        say(
            f"{hook['id']}  {hook['receivedAt']}  {hook['verification']:<9} {hook['status']}  {_lag(hook):<14}  "
            f"{task}  {hook['reason']}{replayed}"
        )
    if not document["data"]:
        note("No callbacks.")
    _tell_missing(document["missing"])


def _attempt(hook: Document) -> str:
    return f"/{hook['attempt']}" if hook["attempt"] is not None else ""


def _lag(hook: Document) -> str:
    return "" if hook["lagSeconds"] is None else f"lag {hook['lagSeconds']:g} s"


def _tell_missing(missing: Document) -> None:
    count = missing["count"]
    if count:
        word = "callback" if count == 1 else "callbacks"
        say(f"{count} {word} never came in the last {missing['hours']:g} hours.", style="yellow")
        note("Those tasks ended all the same, because the provider was asked. README: The webhook was not received.")


def _tell_received(hook: Document) -> None:
    facts = {
        "callback": hook["id"],
        "from": hook["provider"],
        "task": f"{hook['taskId']}{_attempt(hook)}" if hook["taskId"] else None,
        "verdict": f"{hook['verification']} ({hook['status']}): {hook['reason']}",
        "proved": _proved(hook["proofs"]),
        "received": hook["receivedAt"],
        "lag": f"{hook['lagSeconds']:g} s after the end of the job" if hook["lagSeconds"] is not None else None,
        "news read": hook["processedAt"],
        "replay of": hook.get("replayOf"),
        "query": " ".join(f"{name}={value}" for name, value in hook["query"].items()),
    }
    _say_facts(facts)
    for name, value in hook["headers"].items():
        say(f"{'header':<10} {name}: {value}")
    say()
    say(hook["body"])


def _proved(proofs: Document) -> str:
    trusted = ", from a trusted caller" if proofs["trusted"] else ""
    return f"token: {proofs['token']}, signature: {proofs['signature']}{trusted}"


def _explain(told: Document) -> None:
    was = told["was"]
    facts = {
        "callback": told["id"],
        "names": ", ".join(told["names"]),
        "task": f"{told['taskId']}{_attempt(told)}" if told["taskId"] else "none that we know",
        "says": told["report"],
        "verdict": f"{told['verification']} ({told['status']}): {told['reason']}",
        "was": f"{was['verification']} ({was['status']}): {was['reason']}",
        "taken as": told["replayedAs"] if told["replayedAs"] != told["verification"] else None,
        "effect": told["effect"],
    }
    _say_facts(facts)
    if told["dryRun"]:
        say("Nothing was changed.")
    elif told["replayed"]:
        say(f"Replayed as {told['replayId']}.")
    else:
        say("It was not replayed.", style="yellow")


# -- what went out


def _list_sent(deliveries: list[Document]) -> None:
    for one in deliveries:
        last = "" if one["lastStatus"] is None else f"HTTP {one['lastStatus']}"
        say(
            f"{one['id']}  {one['createdAt']}  {one['type']:<14} {one['outcome']:<9} {_so_often(one)}  {last}  "
            f"{one['taskId']}  {one['url']}"
        )
    if not deliveries:
        note("No webhooks were sent.")


def _so_often(delivery: Document) -> str:
    return "once" if delivery["attempts"] == 1 else f"{delivery['attempts']} times"


def _tell_sent(one: Document) -> None:
    facts = {
        "webhook": one["id"],
        "to": one["url"],
        "task": one["taskId"],
        "type": one["type"],
        "outcome": f"{one['outcome']}: {one['reason']}" if one["reason"] else one["outcome"],
        "last": f"HTTP {one['lastStatus']}" if one["lastStatus"] is not None else None,
        "created": one["createdAt"],
        "next try": one["nextAt"],
        "delivered": one["deliveredAt"],
    }
    _say_facts(facts)
    for attempt in one["tries"]:
        said = attempt["error"] if attempt["status"] is None else f"HTTP {attempt['status']}"
        say(f"{'try ' + str(attempt['number']):<10} {attempt['at']}  {said}  {attempt['milliseconds']} ms")
    say()
    say(_written(one["body"]))


def _say_facts(facts: dict[str, str | None]) -> None:
    for name, value in facts.items():
        if value:
            say(f"{name:<10} {value}")
