"""Each account has a secret of its own, which signs its webhooks in every format that has a shared secret."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from broker.services import Services
from storage.deliveries import Delivery
from storage.states import TaskState
from tests.privacy.canaries import add_key, add_user
from tests.support.api import ApiBroker, open_api
from webhooks.signatures.job_id_hmac import JobIdHmac
from webhooks.signatures.standard import derived_key, write_secret

pytestmark = pytest.mark.anyio

KEY = "key-of-the-operator-0123456789"
SHARED_SECRET = ("native", "replicate", "gemini_batch")
"""Formats of Standard Webhooks. fal's is signed with a private key that nobody else has."""


async def get_secrets(broker: ApiBroker, key: str) -> set[str]:
    """Return the secret as the native API and Replicate's say it."""
    headers = {"Authorization": f"Bearer {key}"}
    native = (await broker.client.get("/api/me/webhook-secret", headers=headers)).json()["data"]["secret"]
    replicate = (await broker.client.get("/v1/webhooks/default/secret", headers=headers)).json()["key"]
    return {native, replicate}


def is_signed(services: Services, delivery: Delivery, secret: str) -> bool:
    """Return whether the receiver that has this secret believes the webhook."""
    body, now = delivery.body.encode(), services.clock.now()
    headers = dict(services.webhook_formats[delivery.format].sign(delivery, now, body))
    if delivery.format == "kie":
        signature = JobIdHmac(
            key=secret.encode(), signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp"
        )
        return dict(signature.sign(delivery.task_id, now)) == headers
    try:
        Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return False
    return True


async def test_webhooks_of_an_account_are_signed_with_its_own_secret(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,), secret_key="secret-of-the-broker") as broker:
        users = [await add_user(broker, name, is_admin=name == "ada") for name in ("ada", "bob")]
        keys = [KEY, *[(await add_key(broker, user.id, user.name))[0] for user in users], (await add_key(broker))[0]]
        found = [await get_secrets(broker, key) for key in keys]
        assert all(len(same) == 1 for same in found), "the same at both routes"
        secrets = [secret for (secret,) in found]
        assert len(set(secrets)) == 4
        assert secrets[0] == write_secret(derived_key(b"secret-of-the-broker")), "the operator's is the one of before"
        second = await add_key(broker, users[0].id, "second")
        assert await get_secrets(broker, second[0]) == {secrets[1]}, "one for all keys of a user"
        task = await broker.add_task(state=TaskState.SUCCEEDED, caller=users[1].id, ended_at=1.0)
        delivery = await broker.add_delivery(task)
        for name in (*SHARED_SECRET, "kie"):
            made = {owner: replace(delivery, format=name, caller=owner) for owner in (users[1].id, "house:local")}
            for owner, right in ((users[1].id, secrets[2]), ("house:local", secrets[0])):
                believed = [secret for secret in secrets if is_signed(broker.services, made[owner], secret)]
                assert believed == [right], (name, owner)


async def test_configured_secrets_sign_for_the_operator_alone(tmp_path: Path) -> None:
    configured = write_secret(bytes(range(32)))
    async with open_api(tmp_path, api_keys=(KEY,), webhook_secrets=(configured,)) as broker:
        key, _ = await add_key(broker, (await add_user(broker, "bob")).id)
        assert await get_secrets(broker, KEY) == {configured}
        assert configured not in await get_secrets(broker, key)


async def test_webhook_is_stored_with_the_owner_of_its_task(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,), callback_allow=("127.0.0.1:9",)) as broker:
        user = await add_user(broker, "bob")
        key, _ = await add_key(broker, user.id)
        order = {"prompt": "a fox", "callbackUrl": "http://127.0.0.1:9/hook"}
        created = await broker.client.post("/api/generate/image", json=order, headers=_sent_by(key))
        canceled = await broker.client.delete(f"/api/task/{created.json()['taskId']}", headers=_sent_by(key))
        assert canceled.status_code == 200
        (row,) = await broker.services.database.fetch("SELECT caller, body FROM deliveries")
        assert (row["caller"], json.loads(row["body"])["type"]) == (user.id, "task.canceled")


def _sent_by(key: str) -> dict[str, Any]:
    return dict(httpx.Headers({"Authorization": f"Bearer {key}"}))
