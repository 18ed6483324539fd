"""`broker webhooks`: webhooks sent to callers, and the secret that signs them."""

from __future__ import annotations

from broker.bootstrap import existing_secret, load_settings
from broker.cli.admin.users import find_user
from broker.cli.connection import Document, connect_broker, record_path, show_document
from broker.cli.console import CommandError, format_json, print_facts, print_json, print_line, print_note
from broker.notifications.signing import WebhookKeys
from storage import ids
from webhooks.signatures.standard import write_secret


async def list_webhooks(*, task: str | None, outcome: str | None, limit: int, as_json: bool, watch: bool) -> None:
    """Print the newest webhooks; with `watch` again after each change."""
    filters = {"task": task, "outcome": outcome, "limit": limit}
    await show_document("/api/deliveries", _print_webhooks, as_json=as_json, watch=watch, filters=filters)


async def show_webhook(webhook_id: str, *, as_json: bool) -> None:
    await show_document(record_path("deliveries", webhook_id), _print_webhook, as_json=as_json)


async def replay_webhook(webhook_id: str, *, as_json: bool) -> None:
    """Send a webhook again."""
    async with connect_broker() as broker:
        document = await broker.client.ask("POST", f"{record_path('deliveries', webhook_id)}/replay")
    print_json(document) if as_json else print_line(f"{webhook_id} will be sent again.")


async def print_secrets(owner: str | None) -> None:
    """Print each secret that signs webhooks, the current one first: the operator's, or those of an account.

    owner: name of a user, or id of an API key without one. Raises `CommandError` before the first start.
    """
    settings = load_settings()
    secret = existing_secret(settings)
    if secret is None and not settings.webhook_secrets:
        folder = settings.data_dir.resolve()
        raise CommandError(f"There is no secret in {folder} yet: start the broker once, in this folder.")
    keys = WebhookKeys.from_settings(settings, (secret or b"", *settings.old_secrets))
    for key in keys.of_operator() if owner is None else keys.of_owner(await _find_owner(owner)):
        print_line(write_secret(key))
    print_note("For the receiver of your webhooks: docs/behaviour.md explains the verification.")
    print_note("For clients of the kie.ai dialect, the whole first line is the webhookHmacKey.")


async def _find_owner(name: str) -> str:
    """Return the id of a user or API key. Raises `CommandError`."""
    if ids.API_KEY_ID.fullmatch(name):
        return name
    async with connect_broker() as broker:
        return str((await find_user(broker, name))["id"])


def _print_webhooks(document: Document) -> None:
    for delivery in document["data"]:
        attempts = "once" if delivery["attempts"] == 1 else f"{delivery['attempts']} times"
        last = "" if delivery["lastStatus"] is None else f"HTTP {delivery['lastStatus']}"
        where = delivery["url"] or f"(of {delivery['owner']})"
        print_line(
            f"{delivery['id']}  {delivery['createdAt']}  {delivery['type']:<14} {delivery['outcome']:<9} "
            f"{attempts}  {last}  {delivery['taskId']}  {where}"
        )
    if not document["data"]:
        print_note("No webhooks were sent.")


def _print_webhook(document: Document) -> None:
    delivery = document["data"]
    reason = f": {delivery['reason']}" if delivery["reason"] else ""
    print_facts(
        {
            "webhook": delivery["id"],
            "to": delivery["url"],
            "task": delivery["taskId"],
            "owner": delivery["owner"],
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
    if delivery["withheld"]:
        print_note("Address and body are the content of another account, and not shown.")
        return
    print_line()
    print_line(format_json(delivery["body"]))
