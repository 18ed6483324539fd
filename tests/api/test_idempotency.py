"""Repeated order requests: by Idempotency-Key or by an SDK's retry count, on every database, from two brokers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message

from broker.api.http.answers import TrackedAnswer, send_tracked, track_answer
from broker.api.http.connection import EXTENSION, ClientConnection
from broker.errors import ApiError
from broker.ordering.idempotency import RETRY_WINDOW_SECONDS
from broker.ordering.service import CreatedTasks, OrderService
from broker.orders import ImageParams, OrderRequest, UploadedReference
from broker.services import Services
from tests.support.api import ApiBroker, open_api, png
from tests.support.brokers import still
from tests.support.clock import ManualClock
from tests.support.servers.postgres import Postgres

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"


@pytest.fixture
def clock() -> ManualClock:
    """Begins now: a broker compares its clock with that of the database."""
    return ManualClock(time.time())


@pytest.fixture(params=["sqlite", "postgres"])
async def brokers(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[tuple[Services, Services]]:
    """Two brokers on one database."""
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        settings["database_url"] = await server.fresh()
    clock.advance(time.time() - clock.now())  # a server may take a while to start
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(still(tmp_path, clock, **settings))
        yield one, await stack.enter_async_context(still(tmp_path, clock, **settings))


async def create(services: Services, prompt: str = "a fox", *, caller: str = "me", **fields: Any) -> CreatedTasks:
    orders: OrderService = services.orders
    request = OrderRequest(params=ImageParams(prompt=prompt), **fields)
    return await orders.create(caller, request, await orders.plan("house:local", request))


async def end_answer(services: Services, created: CreatedTasks) -> None:
    assert created.answer is not None
    await services.answers.finish(created.answer)


async def cut_off(services: Services, created: CreatedTasks) -> None:
    assert created.answer is not None
    await services.answers.leave(created.answer)


async def count_tasks(services: Services) -> int:
    rows = await services.database.fetch("SELECT count(*) AS n FROM tasks")
    return int(rows[0]["n"])


def batches(created: list[CreatedTasks]) -> list[str]:
    return [one.tasks[0].batch for one in created]


# -- with a key


async def test_concurrent_requests_with_one_key_create_one_set_of_tasks(brokers: tuple[Services, Services]) -> None:
    created = await asyncio.gather(*(create(brokers[n % 2], count=2, idempotency_key="k") for n in range(10)))
    assert len(set(batches(created))) == 1
    assert [one.is_repeated for one in created].count(False) == 1
    assert await count_tasks(brokers[0]) == 2


async def test_key_with_other_content_is_rejected(brokers: tuple[Services, Services]) -> None:
    await create(brokers[0], idempotency_key="k")
    with pytest.raises(ApiError) as caught:
        await create(brokers[1], "another fox", idempotency_key="k")
    assert caught.value.code == "idempotency_mismatch"
    await create(brokers[1], "another fox", caller="you", idempotency_key="k")
    assert await count_tasks(brokers[0]) == 2


# -- with a retry count


async def test_retry_joins_the_unanswered_first_try(brokers: tuple[Services, Services]) -> None:
    first = await create(brokers[0], retry_count=0)
    again = await create(brokers[1], retry_count=1)
    assert (again.tasks[0].id, again.is_repeated) == (first.tasks[0].id, True)


class Upload:
    """A file that can be read twice, as one of a form; the second time it may be held back."""

    def __init__(self, *, is_held: bool = False) -> None:
        self.second_read = asyncio.Event()
        self.released = asyncio.Event()
        self._reads = 0
        if not is_held:
            self.released.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._reads += 1
        if self._reads == 2:
            self.second_read.set()
            await self.released.wait()
        yield png()


def with_reference(upload: Any) -> tuple[UploadedReference, ...]:
    return (UploadedReference(chunks=upload),)


async def test_retry_and_first_try_in_progress_create_one_task(brokers: tuple[Services, Services]) -> None:
    """The first try is still storing its reference; the retry is quicker."""
    slow = Upload(is_held=True)
    first = asyncio.create_task(create(brokers[0], retry_count=0, sources=with_reference(slow)))
    await slow.second_read.wait()
    again = await create(brokers[1], retry_count=1, sources=with_reference(Upload()))
    slow.released.set()
    late = await first
    assert (late.tasks[0].id, late.is_repeated) == (again.tasks[0].id, True)
    assert await count_tasks(brokers[0]) == 1
    images = await brokers[0].database.fetch("SELECT owner FROM images")
    assert [row["owner"] for row in images] == await brokers[0].blobs.list_owners(-60.0), "the other copy is deleted"


async def test_equal_first_tries_create_a_task_each(brokers: tuple[Services, Services]) -> None:
    created = await asyncio.gather(*(create(brokers[n % 2], retry_count=0) for n in range(6)))
    assert len(set(batches(created))) == 6


async def test_requests_without_retry_count_create_a_task_each(brokers: tuple[Services, Services]) -> None:
    assert len(set(batches([await create(one) for one in brokers]))) == 2


async def test_each_retry_joins_a_first_try_of_its_own(brokers: tuple[Services, Services]) -> None:
    """Three equal orders whose answers were lost stay three, however often each is sent."""
    firsts = [await create(brokers[0], retry_count=0) for _ in range(3)]
    for count in (1, 2):
        again = await asyncio.gather(*(create(brokers[n % 2], retry_count=count) for n in range(3)))
        assert sorted(batches(again)) == sorted(batches(firsts))
    assert await count_tasks(brokers[0]) == 3


async def test_answered_order_is_not_joined(brokers: tuple[Services, Services]) -> None:
    first = await create(brokers[0], retry_count=0)
    await end_answer(brokers[0], first)
    assert (await create(brokers[1], retry_count=1)).tasks[0].id != first.tasks[0].id


async def test_retry_joins_the_newest_unanswered_order(brokers: tuple[Services, Services]) -> None:
    answered, newest = [await create(brokers[0], retry_count=0) for _ in range(2)]
    await end_answer(brokers[0], answered)
    assert (await create(brokers[1], retry_count=1)).tasks[0].id == newest.tasks[0].id


async def test_retry_after_the_window_is_a_new_order(brokers: tuple[Services, Services], clock: ManualClock) -> None:
    first = await create(brokers[0], retry_count=0)
    await cut_off(brokers[0], first)
    clock.advance(RETRY_WINDOW_SECONDS + 0.1)
    assert (await create(brokers[1], retry_count=1)).tasks[0].id != first.tasks[0].id


async def test_retry_of_a_failed_first_try_creates_the_task(brokers: tuple[Services, Services]) -> None:
    with pytest.raises(ApiError):
        await create(brokers[0], retry_count=0, callback_url="https://user@example.com/")
    with pytest.raises(ApiError):
        await create(brokers[1], retry_count=1, callback_url="https://user@example.com/")
    assert await count_tasks(brokers[0]) == 0


async def test_other_callers_and_other_content_are_not_joined(brokers: tuple[Services, Services]) -> None:
    await create(brokers[0], retry_count=0)
    await create(brokers[1], retry_count=1, caller="you")
    await create(brokers[1], "another fox", retry_count=1)
    assert await count_tasks(brokers[0]) == 3


# -- with a recorded answer


async def test_connection_that_is_lost_a_moment_later_is_waited_for(brokers: tuple[Services, Services]) -> None:
    """The client is back before the loss of its old connection is noticed."""
    first = await create(brokers[0], retry_seconds=600)
    again = asyncio.create_task(create(brokers[0], retry_seconds=600))
    await asyncio.sleep(0.05)
    await cut_off(brokers[0], first)
    assert (await again).tasks[0].id == first.tasks[0].id


async def test_answer_on_a_connection_that_was_lost_before_is_cut_off(brokers: tuple[Services, Services]) -> None:
    """The client closed it while the answer was made, so nothing that was sent is left unread."""
    first = await create(brokers[0], retry_seconds=600)
    connection = ClientConnection()
    connection.lose(None)
    scope: dict[str, Any] = {"type": "http", "extensions": {EXTENSION: {"connection": connection}}}
    track_answer(scope, TrackedAnswer(answers=brokers[0].answers, answer=first.answer))
    await send_tracked(Response("an answer"), scope, _nothing, _sent)
    assert (await create(brokers[1], retry_seconds=600)).tasks[0].id == first.tasks[0].id


async def _nothing() -> Message:
    raise AssertionError("the request has no body")


async def _sent(_: Message) -> None:
    """A server takes what it is given, also after the connection was lost."""


# -- over HTTP


async def hang_up_while_it_is_written(broker: ApiBroker, body: bytes) -> None:
    """Send a request and close the connection before the answer; return when the task is in the database."""
    _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(
        f"POST {CREATE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/json\r\nX-Stainless-Retry-Count: 0\r\n\r\n".encode()
    )
    writer.write(body)
    writer.close()
    async with asyncio.timeout(10):
        while (await broker.stored_counts())[0] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_sdk_retry_after_a_lost_answer_returns_the_first_task(tmp_path: Path) -> None:
    async with open_api(tmp_path, sockets=True) as broker:
        body = b'{"prompt": "a banana"}'
        await hang_up_while_it_is_written(broker, body)
        again = await broker.client.post(
            CREATE,
            content=body,
            headers={"Content-Type": "application/json", "X-Stainless-Retry-Count": "1"},
        )
        assert again.status_code == 202
        assert (await broker.stored_counts())[0] == 1
        another = await broker.client.post(
            CREATE, json={"prompt": "a banana"}, headers={"X-Stainless-Retry-Count": "1"}
        )
        assert another.json()["taskId"] != again.json()["taskId"]


async def test_uploads_are_compared_by_their_bytes(tmp_path: Path) -> None:
    """The boundary between the parts differs on each request. The images are read twice, and still arrive whole."""
    async with open_api(tmp_path) as broker:
        posts = [
            broker.client.post(
                CREATE,
                data={"prompt": "x"},
                files={"image": ("a.png", png(color), "image/png")},
                headers={"X-Stainless-Retry-Count": "0"},
            )
            for color in ("red", "blue")
        ]
        red, blue = await asyncio.gather(*posts)
        assert (red.status_code, blue.status_code) == (202, 202)
        tasks, images, _, files = await broker.stored_counts()
        assert (tasks, images, files) == (2, 2, 2)


@pytest.mark.parametrize("count", ["", "-1", "x", "1" * 9])
async def test_invalid_retry_count_is_ignored(tmp_path: Path, count: str) -> None:
    async with open_api(tmp_path) as broker:
        answer = await broker.client.post(CREATE, json={"prompt": "x"}, headers={"X-Stainless-Retry-Count": count})
        assert answer.status_code == 202
