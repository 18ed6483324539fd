"""The user's own key at Replicate in the dialect of the image service (S4-06, S4-20)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.sandbox.engine import Options
from broker.sandbox.jobs import account_of
from broker.sandbox.server import serve_sandbox
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

KEY, REFUSED = "r8_canary-of-ada-0001", "r8_canary-refused-0002"
OPERATOR = "key-of-the-operator-0123456789"
PATH = "/api/v1/users/api-key"


async def register(broker: RunningBroker, name: str) -> dict[str, str]:
    account = {"username": name, "email": f"{name}@example.com", "password": "password123"}
    answer = await broker.client.post("/api/v1/auth/register", json=account)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


async def make_image(broker: RunningBroker, headers: dict[str, str], prompt: str) -> None:
    ordered = await broker.client.post("/api/v1/images/generate", json={"prompt": prompt}, headers=headers)
    async with asyncio.timeout(10):
        while True:
            answer = await broker.client.get(f"/api/v1/images/status/{ordered.json()['image_id']}", headers=headers)
            if answer.json()["status"] == "completed":
                return
            assert answer.json()["status"] != "failed", answer.text
            await asyncio.sleep(0.02)


async def test_own_key_is_tested_used_first_never_shown_and_removed(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"duration": 0.05, "callback_spacing": 0.05}
    of_users = Options(dialect="replicate", refused_keys={REFUSED}, are_accounts_apart=True, **quick)
    async with serve_sandbox(options=of_users) as replicate, serve_sandbox(options=Options(**quick)) as kie:
        settings: dict[str, Any] = {
            "replicate_url": f"{replicate}/v1",
            "registration": "open",
            "api_keys": OPERATOR,
            "download_allow": tuple(url.removeprefix("http://") for url in (replicate, kie)),
        }
        async with open_broker(tmp_path, sandbox=kie, **settings) as broker:
            ada, bob = await register(broker, "ada"), await register(broker, "bob")
            texts: list[str] = []

            async def call(method: str, headers: dict[str, str], **body: Any) -> tuple[int, dict[str, Any]]:
                answer = await broker.client.request(method, PATH, headers=headers, **body)
                texts.append(answer.text)
                return answer.status_code, answer.json()

            absent = (200, {"message": "You have no key of your own.", "has_key": False, "last_four": None})
            assert await call("GET", ada) == await call("DELETE", ada) == absent
            status, refused = await call("PUT", ada, json={"api_key": REFUSED})
            assert (status, list(refused)) == (400, ["detail"]) and "does not accept" in refused["detail"]
            assert await call("GET", ada) == absent
            status, stored = await call("PUT", {**ada, "Accept-Language": "ru"}, json={"api_key": f" {KEY}\n"})
            assert (status, stored["has_key"], stored["last_four"], stored["valid"]) == (200, True, "0001", "true")
            assert stored["message"] == "Ключ принят и сохранён в зашифрованном виде."
            status, found = await call("GET", ada)
            assert (status, found["has_key"], found["last_four"], "valid" in found) == (200, True, "0001", False)
            assert await call("GET", bob) == absent

            wrong: list[Any] = [{}, {"api_key": 5}, {"api_key": "short"}, {"api_key": KEY, "provider": "openrouter"}]
            for body in wrong:
                status, document = await call("PUT", ada, json=body)
                assert (status, list(document)) == (400, ["detail"]), body
            operator = {"Authorization": f"Bearer {OPERATOR}"}
            assert await call("GET", operator) == absent
            assert (await call("PUT", operator, json={"api_key": KEY}))[0] == 403
            assert (await broker.client.get(PATH)).status_code == 401

            await make_image(broker, ada, "a fox of ada")
            await make_image(broker, bob, "a fox of bob")
            async with httpx.AsyncClient(verify=False) as client:
                jobs = (await client.get(f"{replicate}/sandbox/jobs")).json()["jobs"]
            assert [(job["prompt"], job["account"]) for job in jobs] == [("a fox of ada", account_of(KEY))]
            assert [job["prompt"] for job in await broker.provider_jobs()] == ["a fox of bob"]

            assert await call("DELETE", ada) == absent == await call("GET", ada)
            await make_image(broker, ada, "another fox of ada")
            assert [job["prompt"] for job in await broker.provider_jobs()][1:] == ["another fox of ada"]
            assert not any("canary" in text for text in texts), "no answer holds a key"
