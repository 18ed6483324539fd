"""Journeys with canaries in everything that must stay secret: none is found in logs, metrics or error answers."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.logs import configure_logging, log
from broker.sandbox.engine import Options
from storage.states import TaskState
from tests.contracts.providers import Canned, Upstream
from tests.support.api import png
from tests.support.brokers import RunningBroker, open_broker
from tests.support.log_lines import restored_logging

pytestmark = pytest.mark.anyio

KEY = "canary-provider-key"
CALLER = "canary-caller-key-0123456789"
PROMPT = "canary-prompt a red bicycle"
SECRETS: dict[str, Any] = {
    "kie_keys": KEY,
    "api_keys": (CALLER,),
    "secret_key": "canary-secret-0123456789",
    "webhook_key": "canary-hmac-key",
}
MOODS = (
    "good",
    "flagged",
    "failed",
    "internal",
    "code:500",
    "code:401",
    "code:422",
    "status:503",
    "gone_once:1",
    "html",
    "lost",
)
TRUSTED = {"Authorization": f"Bearer {CALLER}"}


class Echo(Upstream):
    """A provider that repeats the request in every error."""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            (int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length")), 0
        )
        body = (await reader.readexactly(length)).decode()
        repeated = f"no: {head} {body} {PROMPT}".replace("\r\n", " ")
        if "recordInfo" in head:
            answer: dict[str, Any] = {
                "code": 200,
                "data": {"taskId": "job", "state": "fail", "failCode": PROMPT, "failMsg": repeated},
            }
        elif "accept" in body:
            answer = {"code": 200, "data": {"taskId": "job"}}
        else:
            answer = {"code": 500 if "unknown" in body else 400, "msg": repeated}
        writer.write(Canned(body=answer).encoded())
        await writer.drain()
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.mark.parametrize("form", [pytest.param("console", marks=pytest.mark.faults), "json"])
async def test_secrets_appear_in_no_output(tmp_path: Path, form: str) -> None:
    configure_logging("DEBUG", form, tmp_path / "logs")
    outputs: list[str] = []
    sandbox_options = Options(
        duration=0.05, callback_spacing=0.05, creates_per_window=10_000, webhook_key="canary-hmac-key"
    )
    async with open_broker(tmp_path / "one", options=sandbox_options, **SECRETS) as broker:
        broker.client.headers.update(TRUSTED)
        tokens = await _journeys(broker)
        outputs += await _error_responses(broker)
        outputs.append((await broker.client.get("/metrics")).text)
    async with (
        Echo().open() as echo,
        open_broker(tmp_path / "two", sandbox=echo.url, with_callbacks=False, **SECRETS) as broker,
    ):
        broker.client.headers.update(TRUSTED)
        for word in ("refuse", "unknown", "accept"):
            await broker.wait_end(await broker.create_task(f"{PROMPT} {word}"))
        outputs.append((await broker.client.get("/metrics")).text)
    logs = (tmp_path / "logs" / "app.log").read_text("utf-8")
    for action in ("task_succeeded", "task_failed", "unclassified_provider_error", "submit_unknown", "download_failed"):
        assert action in logs  # the secret had a chance to leak
    assert not [line for line in logs.splitlines() if "download_failed" in line and "://" in line]  # of a result
    for text in (logs, *outputs):
        assert "canary" not in text, _around(text, "canary")
        assert not any(token in text for token in tokens)
        assert base64.b64encode(png())[:60].decode() not in text


def _around(text: str, word: str) -> str:
    at = text.index(word)
    return text[max(0, at - 300) : at + 100]


async def _journeys(broker: RunningBroker) -> set[str]:
    """Create tasks with every kind of end; return the tokens of their callbacks."""
    image = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    ids = [await broker.create_task(f"{PROMPT} [mood:{mood}]") for mood in MOODS]
    ids.append(await broker.create_task(PROMPT, mode="image-to-image", images=[image]))
    for task_id in ids:
        await broker.client.get(f"/api/task/{task_id}/events", timeout=30)
        await broker.wait_end(task_id)
    canceled = await broker.create_task(f"{PROMPT} [mood:slow:60]")
    await broker.client.delete(f"/api/task/{canceled}")
    token = broker.services.tokens.token
    return {token(task_id, attempt) for task_id in (*ids, canceled) for attempt in (1, 2, 3)}


async def _error_responses(broker: RunningBroker) -> list[str]:
    """Send requests that are rejected, with canaries in them; return the responses."""
    task = (await broker.client.get("/api/tasks")).json()["data"][0]["id"]
    webhook = "/api/webhook/nano-banana"
    async with httpx.AsyncClient(base_url=broker.client.base_url, timeout=20) as anonymous:
        answers = [
            await anonymous.post(
                "/api/generate/image", json={"prompt": PROMPT}, headers={"Authorization": "Bearer canary-bad"}
            ),
            await anonymous.get(
                "/api/tasks", headers={"Authorization": "Bearer canary-bad", "X-Forwarded-For": "1.2.3.4"}
            ),
            await anonymous.post(f"{webhook}?task={task}&attempt=1&token=canary-token", json={"prompt": PROMPT}),
            await anonymous.post(f"{webhook}?task={task}&secret=canary-query", content=b"canary not json"),
            await anonymous.get("/api/task/task_canary"),
            await anonymous.get("/canary?token=canary"),
        ]
    answers += [
        await broker.client.post("/api/generate/image", json={"prompt": PROMPT, "model": "no-such"}),
        await broker.client.post("/api/generate/image", json={"prompt": PROMPT, "mode": "image-to-image"}),
        await broker.client.post("/api/generate/image", json={"prompt": PROMPT, "images": ["data:canary"]}),
        await broker.client.post(
            "/api/generate/image", content=b'{"prompt": "canary', headers={"content-type": "application/json"}
        ),
        await broker.client.post(
            "/api/generate/image", json={"prompt": PROMPT, "imageUrls": ["http://127.0.0.1:9/x?sig=canary"]}
        ),
    ]
    assert all(answer.status_code >= 400 for answer in answers)
    return [answer.text for answer in answers]


@pytest.mark.parametrize("form", ["console", "json"])
async def test_unexpected_error_is_logged_without_its_text(tmp_path: Path, form: str) -> None:
    """The text of an unexpected error may hold data of a caller or a provider."""
    configure_logging("DEBUG", form, tmp_path / "logs")
    async with open_broker(tmp_path, **SECRETS) as broker:

        async def broken() -> None:
            raise ValueError(f"cannot handle {PROMPT}")

        assert not await broker.services.worker.running.contain_errors(broken(), "task_1", TaskState.WAITING.value)
        broker.client.headers.update(TRUSTED)
        task_id = await broker.create_task(PROMPT)
        await broker.services.database.execute("UPDATE tasks SET state = 'canary', version = version + 1")
        answer = await broker.client.get(f"/api/task/{task_id}")
        assert answer.status_code == 500
    logs = (tmp_path / "logs" / "app.log").read_text("utf-8")
    assert "step_failed" in logs
    assert "ValueError" in logs
    assert "request_failed" in logs
    assert "canary" not in logs


def test_debug_lines_of_libraries_are_not_logged(tmp_path: Path) -> None:
    """Some of them log whole bodies and statements with their values."""
    configure_logging("DEBUG", "json", tmp_path)
    for name in ("aiosqlite", "httpx", "python_multipart.multipart", "asyncio"):
        logging.getLogger(name).debug("canary")
    log.debug("ours", action="ours")
    lines = [json.loads(line)["action"] for line in (tmp_path / "app.log").read_text().splitlines()]
    assert lines == ["ours"]
