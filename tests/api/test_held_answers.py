"""Held answers, by the smallest dialect that has them: waiting, leaving, cut-off answers, and the ceiling."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread

from broker.sandbox.engine import Options
from storage.sql.scope import EVERYTHING
from tests.support.brokers import RunningBroker, open_broker

pytestmark = pytest.mark.anyio

SLOW = Options(duration=0.3, callback_spacing=0.05, creates_per_window=10_000)


@asynccontextmanager
async def broker_in(folder: Path, **settings: Any) -> AsyncIterator[RunningBroker]:
    async with open_broker(folder, options=SLOW, task_deadline=20, **settings) as broker:
        yield broker


async def generate(broker: RunningBroker, prompt: str, **headers: str) -> httpx.Response:
    return await broker.client.post("/generate", json={"prompt": prompt}, headers=headers)


async def hang_up(broker: RunningBroker, prompt: str, *, read: int = 0, **headers: str) -> None:
    """Send an order, and close the connection once it is durable, or after some bytes of the answer."""
    with await to_thread.run_sync(_send_order, broker.client.base_url, prompt, headers) as connection:
        if read:
            assert len(await to_thread.run_sync(connection.recv, read, socket.MSG_WAITALL)) == read
            await asyncio.sleep(0.02)  # the rest of the answer arrives
            return
        while not await broker.services.queries.list_newest(EVERYTHING, status=None, limit=1, before=None):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _send_order(url: httpx.URL, prompt: str, headers: Mapping[str, str]) -> socket.socket:
    """Return a socket without buffers of its own: the kernel resets its connection for what it has not read."""
    body = json.dumps({"prompt": prompt}).encode()
    head = f"POST /generate HTTP/1.1\r\nHost: {url.host}:{url.port}\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    connection = socket.create_connection((url.host, url.port))
    connection.sendall(head.encode() + body)
    return connection


async def ordered(broker: RunningBroker) -> int:
    return len(await broker.provider_jobs())


async def test_answer_has_the_images_and_the_task(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        answer = await generate(broker, "a red fox")
        assert answer.status_code == 200, answer.text
        (image,) = answer.json()["images"]
        task = await broker.get_task(answer.headers["x-request-id"])
        stored = (await broker.client.get(task["result"])).content
        assert base64.b64decode(image, validate=True) == stored
        assert (answer.headers["x-should-retry"], answer.headers["content-length"]) == (
            "false",
            str(len(answer.content)),
        )
        at_once = await generate(broker, "a blue fox", Prefer="respond-async")
        assert (at_once.status_code, at_once.headers["location"]) == (202, f"/api/task/{at_once.json()['task_id']}")


async def test_equal_orders_of_two_dialects_are_two(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        await hang_up(broker, "a red fox")
        order = {"prompt": "a red fox", "model": "nano-banana-pro"}
        other = await broker.client.post("/v1/images/generations", json=order)
        assert (other.status_code, await ordered(broker)) == (200, 2), other.text
        again = await generate(broker, "a red fox")
        assert (again.status_code, await ordered(broker)) == (200, 2), "the order whose answer was cut off"
        assert again.headers["x-request-id"] != other.headers["x-request-id"]


async def test_ignored_fields_of_any_name_are_listed_where_a_header_can_hold_them(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        body = {
            "prompt": "a red fox",
            "style": 1,
            "\u043a\u043b\u044e\u0447": 1,
            "a\r\nx-injected: 1": 1,
            "a,b": 1,
            "x" * 65: 1,
        }
        answer = await broker.client.post("/generate", json=body)
        assert (answer.status_code, answer.headers["x-ignored"]) == (200, "style"), answer.text
        many = {"prompt": "a red fox", **{f"field{number}": 1 for number in range(100)}}
        answer = await broker.client.post("/generate", json=many)
        assert len(answer.headers["x-ignored"].split(", ")) == 20


async def test_asking_twice_gives_two_images_also_at_the_same_time(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        await asyncio.gather(*(generate(broker, "a red fox") for _ in range(3)))
        await generate(broker, "a red fox")
        assert await ordered(broker) == 4


async def test_client_that_leaves_gets_the_same_order_when_it_returns(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        await hang_up(broker, "a red fox")
        answer = await generate(broker, "a red fox")
        assert answer.status_code == 200
        assert await ordered(broker) == 1
        await generate(broker, "a red fox")
        assert await ordered(broker) == 2, "that one was answered"


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_answer_that_was_cut_off_is_sent_again(tmp_path: Path, connection: str) -> None:
    """The whole answer fits in the buffers of the network; only the reset says that it was not read."""
    async with broker_in(tmp_path) as broker:
        await hang_up(broker, "a red fox", read=100, Connection=connection)
        answer = await generate(broker, "a red fox")
        assert (answer.status_code, await ordered(broker)) == (200, 1)


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_short_answer_that_was_not_read_is_sent_again(tmp_path: Path, connection: str) -> None:
    """It fits in the buffers of the network; only the reset says that it was not read, also where we close."""
    async with broker_in(tmp_path) as broker:
        await hang_up(broker, "a red fox", read=10, Connection=connection, Prefer="respond-async")
        await asyncio.sleep(0.05)
        again = await generate(broker, "a red fox", Prefer="respond-async")
        await broker.wait_end(again.headers["x-request-id"])
        assert await ordered(broker) == 1


async def test_sdk_that_gave_up_joins_while_the_first_try_still_waits(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        first = asyncio.create_task(generate(broker, "a red fox", **{"X-Stainless-Retry-Count": "0"}))
        await asyncio.sleep(0.1)
        again = await generate(broker, "a red fox", **{"X-Stainless-Retry-Count": "1"})
        assert (await first).headers["x-request-id"] == again.headers["x-request-id"]
        assert await ordered(broker) == 1


async def test_idempotency_key_joins_an_answered_order(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        answers = [await generate(broker, "a red fox", **{"Idempotency-Key": "k"}) for _ in range(2)]
        assert answers[0].content == answers[1].content
        assert await ordered(broker) == 1


async def test_answer_after_the_ceiling_names_the_task_and_the_next_request_waits_for_it(tmp_path: Path) -> None:
    async with broker_in(tmp_path, hold=0.15) as broker:
        early = await generate(broker, "a red fox")
        assert early.status_code == 504
        assert early.headers["x-request-id"] in early.json()["detail"]
        await broker.wait_end(early.headers["x-request-id"])
        answer = await generate(broker, "a red fox")
        assert (answer.status_code, await ordered(broker)) == (200, 1)
        assert answer.headers["x-request-id"] == early.headers["x-request-id"]


async def test_broker_that_stops_lets_the_client_come_back(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        waiting = asyncio.create_task(generate(broker, "a red fox"))
        await asyncio.sleep(0.1)
        broker.services.queries.closing = True
        assert (await waiting).status_code == 503
        broker.services.queries.closing = False
        answer = await generate(broker, "a red fox")
        assert (answer.status_code, await ordered(broker)) == (200, 1)


async def test_failure_is_an_error_on_which_no_sdk_pays_twice(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        for mood, status in (("flagged", 400), ("noresult", 424)):
            answer = await generate(broker, f"a red fox [mood:{mood}]")
            assert (answer.status_code, list(answer.json())) == (status, ["detail"]), answer.text
            assert answer.headers["x-should-retry"] == "false"
        rejected = await broker.client.post("/generate", json={"prompt": "a fox", "number_of_images": 11})
        assert (rejected.status_code, "x-should-retry" in rejected.headers) == (400, False)


async def test_ignored_names_that_fit_in_no_header_are_left_out(tmp_path: Path) -> None:
    async with broker_in(tmp_path) as broker:
        odd = {"tempo": 1, "键": 1, "a\r\nx-evil: 1": 1, "a,b": 1, "": 1, **{f"more{n}": 1 for n in range(40)}}
        answer = await broker.client.post("/generate", json={"prompt": "a red fox", **odd})
        assert answer.status_code == 200, answer.text
        names = answer.headers["x-ignored"].split(", ")
        assert (names[:2], len(names), "x-evil" in answer.headers) == (["tempo", "more0"], 20, False)
