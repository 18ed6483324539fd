"""`broker webhooks`: webhooks sent to callers, and the secret that signs them."""

from __future__ import annotations

import re
from typing import Any

from broker.bootstrap import existing_secret, load_settings
from broker.cli.connection import connect_broker, poll_changes
from broker.cli.console import (
    CommandError,
    clear_screen,
    format_json,
    print_facts,
    print_json,
    print_line,
    print_note,
)
from broker.services import signing_keys
from webhooks.signatures.standard import write_secret

Delivery = dict[str, Any]
"""A webhook with its delivery, as the API presents it."""


async def list_webhooks(*, task: str | None, outcome: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """Print the newest webhooks; with `watch` again after each change."""
    filters = {"task": task, "outcome": outcome, "limit": str(limit)}
    params = {name: value for name, value in filters.items() if value is not None}
    async with connect_broker() as broker:
        async for document in poll_changes(lambda: broker.client.ask("GET", "/api/deliveries", params=params), watch):
            if as_json:
                print_json(document)
                continue
            if watch:
                clear_screen()
            _print_list(document["data"])


async def show_webhook(webhook_id: str, *, as_json: bool) -> None:
    async with connect_broker() as broker:
        document = await broker.client.ask("GET", _webhook_path(webhook_id))
    print_json(document) if as_json else _print_webhook(document["data"])


async def replay_webhook(webhook_id: str, *, as_json: bool) -> None:
    """Send a webhook again."""
    async with connect_broker() as broker:
        document = await broker.client.ask("POST", f"{_webhook_path(webhook_id)}/replay")
    print_json(document) if as_json else print_line(f"{webhook_id} will be sent again.")


async def print_secrets() -> None:
    """Print each signing secret, the current one first. Raises `CommandError` before the first start."""
    settings = load_settings()
    secret = existing_secret(settings)
    if secret is None and not settings.webhook_secrets:
        folder = settings.data_dir.resolve()
        raise CommandError(f"There is no secret in {folder} yet: start the broker once, in this folder.")
    for key in signing_keys(settings, secret or b""):
        print_line(write_secret(key))
    print_note("For the receiver of your webhooks: docs/behaviour.md explains the verification.")


def _webhook_path(webhook_id: str) -> str:
    if not re.fullmatch(r"evt_[0-9A-Za-z_-]{1,100}", webhook_id):
        raise CommandError("The id of a webhook begins with evt_; for callbacks (hook_) use `broker callbacks`.")
    return f"/api/deliveries/{webhook_id}"


def _print_list(deliveries: list[Delivery]) -> None:
    for delivery in deliveries:
        attempts = "once" if delivery["attempts"] == 1 else f"{delivery['attempts']} times"
        last = "" if delivery["lastStatus"] is None else f"HTTP {delivery['lastStatus']}"
        print_line(
            f"{delivery['id']}  {delivery['createdAt']}  {delivery['type']:<14} {delivery['outcome']:<9} "
            f"{attempts}  {last}  {delivery['taskId']}  {delivery['url']}"
        )
    if not deliveries:
        print_note("No webhooks were sent.")


def _print_webhook(delivery: Delivery) -> None:
    reason = f": {delivery['reason']}" if delivery["reason"] else ""
    print_facts(
        {
            "webhook": delivery["id"],
            "to": delivery["url"],
            "task": delivery["taskId"],
            "type": delivery["type"],
            "outcome": f"{delivery['outcome']}{reason}",
            "last": None if delivery["lastStatus"] is None else f"HTTP {delivery['lastStatus']}",
            "created": delivery["createdAt"],
            "next try": delivery["nextAt"],
            "delivered": delivery["deliveredAt"],
        }
    )
    for attempt in delivery["attemptLog"]:
        result = attempt["error"] if attempt["status"] is None else f"HTTP {attempt['status']}"
        name = f"try {attempt['number']}"
        print_line(f"{name:<10} {attempt['at']}  {result}  {attempt['milliseconds']} ms")
    print_line()
    print_line(format_json(delivery["body"]))
