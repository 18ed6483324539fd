"""Own keys in a provider that repeats them everywhere: in no answer, log, metric, database or inbox."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from broker.accounts.provider_keys import KeyTest
from broker.logs import configure_logging
from tests.accounts.own_keys import Caller, Market, open_market
from tests.contracts.providers import Canned, Upstream
from tests.journeys.test_canaries import restored
from tests.support.planted_secrets import find_secrets

pytestmark = pytest.mark.anyio
__all__ = ["restored"]  # a fixture: the logging of the test process

KEY = 'planted-key"of/alice+-0001'
"""With characters that JSON and URLs spell in several ways."""


class Repeating(Upstream):
    """kie.ai, repeating the whole request in whatever it says."""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length")), 0)
        body = (await reader.readexactly(length)).decode()
        repeated = f"no: {head} {body} {quote(KEY, safe='')}".replace("\r\n", " ")
        if "chat/credit" in head:
            answer: dict[str, Any] = {"code": 200, "data": 7.0, "msg": repeated}
        elif "recordInfo" in head:
            answer = {"code": 200, "data": {"taskId": "job", "state": "fail", "failCode": KEY, "failMsg": repeated}}
        elif "accept" in body:
            answer = {"code": 200, "data": {"taskId": "job"}}
        else:
            answer = {"code": 500 if "unknown" in body else 400, "msg": repeated}
        writer.write(Canned(body=answer).encoded())
        await writer.drain()
        return True


async def send_callback(market: Market, alice: Caller) -> str:
    """Send a callback with the key in every spelling about a task of hers; return what the inbox has."""
    task = await alice.order("accept, and wait [x]")
    async with asyncio.timeout(5):
        while not await market.attempts(task):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    token = market.services.tokens.token(task, 1)
    spellings = [KEY, quote(KEY, safe=""), json.dumps(KEY), json.dumps(KEY).replace("/", "\\/"), quote(quote(KEY))]
    body = {"code": 200, "data": {"taskId": "job", "state": "generating", "param": spellings}}
    headers = {"X-Echo": KEY, "X-Forwarded-For": "8.8.8.8"}
    answer = await market.broker.client.post(
        f"/api/webhook/nano-banana?task={task}&attempt=1&token={token}", json=body, headers=headers
    )
    assert answer.status_code == 200
    callbacks = market.services.tables.callbacks
    (entry,) = await callbacks.list_newest(limit=9, task_id=task)
    stored = str(await callbacks.get(entry.id))
    assert stored.count("[hidden]") >= len(spellings)
    return stored + (await market.house().client.get("/api/callbacks")).text


async def dump(market: Market) -> str:
    """Return every row of every table."""
    database, texts = market.services.database, list[str]()
    tables = await database.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
    for table in tables:
        texts += [str(row) for row in await database.fetch(f"SELECT * FROM {table['table_name']}")]
    return "\n".join(texts)


@pytest.mark.parametrize("form", [pytest.param("console", marks=pytest.mark.faults), "json"])
async def test_own_key_appears_in_no_output(tmp_path: Path, form: str, request: pytest.FixtureRequest) -> None:
    shared: dict[str, Any] = {}
    if form == "json":
        shared["database_url"] = await request.getfixturevalue("postgres").fresh()
    configure_logging("DEBUG", form, tmp_path / "logs")
    async with (
        Repeating().open() as upstream,
        open_market(tmp_path, with_callbacks=False, api_url=upstream.url, upload_url=upstream.url, **shared) as market,
    ):
        alice = await market.add_caller("alice")
        outputs = [str(await alice.set_key("kie", KEY))]
        for word in ("refuse", "unknown", "accept"):
            outputs.append(str(await market.broker.wait_end(await alice.order(word))))
        outputs.append(await send_callback(market, alice))
        outputs += [str(await alice.get_key("kie")), (await market.house().client.get("/metrics")).text]
        services = market.services
        (row,) = await services.tables.provider_keys.list_active(alice.owner)
        pool = await services.accounts.find_pool(row.account)
        outputs += [repr(value) for value in (services.accounts, pool, row, services.vault, services.registry)]
        assert pool is not None
        outputs.append(repr(vars(services.accounts)))
        outputs.append(repr(KeyTest(valid="true", reason="x")))
        if form == "json":
            outputs.append(await dump(market))
            assert row.sealed in outputs[-1]
    logs = (tmp_path / "logs" / "app.log").read_text("utf-8")
    for action in ("provider_key_set", "submit_unknown", "task_failed"):
        assert action in logs, "it had a chance to leak"
    for text in (logs, *outputs):
        assert find_secrets(text.encode()) == []
        assert "key%22of" not in text
        assert 'key\\"of' not in text
