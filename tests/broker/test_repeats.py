"""What comes twice: one after the other where there is a key, joined where an SDK repeats by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from broker.repeats import REPEAT_SECONDS, InTurn, Repeats
from tests.broker.api_house import ApiHouse, open_api, png
from tests.conftest import ManualClock

pytestmark = pytest.mark.anyio

CREATE = "/api/generate/image"


class Counter:
    """Orders that end when told to; each gives a value of its own."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = asyncio.Event()

    def order(self, *, fails: bool = False) -> Callable[[], Awaitable[list[int]]]:
        async def make() -> list[int]:
            self.begun += 1
            number = self.begun
            await self.go.wait()
            if fails:
                raise ConnectionError
            return [number]

        return make


async def soon(*awaitables: Awaitable[list[int]]) -> list[asyncio.Future[list[int]]]:
    """All of them begun, in order."""
    futures: list[asyncio.Future[list[int]]] = []
    for awaitable in awaitables:
        futures.append(asyncio.ensure_future(awaitable))
        await asyncio.sleep(0)
    return futures


# -- in turn


async def test_one_key_is_served_one_at_a_time_and_forgotten_then() -> None:
    turns, inside, most = InTurn(), 0, 0

    async def enter(key: str) -> None:
        nonlocal inside, most
        async with turns.of(key):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter("same") for _ in range(5)))
    assert most == 1
    await asyncio.gather(*(enter(f"{n}") for n in range(5)))
    assert most == 5
    assert not turns._turns


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    turns = InTurn()
    async with turns.of("key"):
        waiter = asyncio.ensure_future(turns.of("key").__aenter__())
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
    async with asyncio.timeout(1), turns.of("key"):
        pass
    assert not turns._turns


# -- repeats


async def test_a_repetition_is_joined_while_the_first_is_under_way(clock: ManualClock) -> None:
    repeats, counter = Repeats[list[int]](clock), Counter()
    orders = await soon(repeats.once("me", 0, counter.order()), repeats.once("me", 1, counter.order()))
    clock.advance(REPEAT_SECONDS * 10)
    counter.go.set()
    assert await asyncio.gather(*orders) == [[1], [1]]


async def test_the_same_for_the_first_time_is_another_order(clock: ManualClock) -> None:
    repeats, counter = Repeats[list[int]](clock), Counter()
    orders = await soon(repeats.once("me", 0, counter.order()), repeats.once("me", 0, counter.order()))
    counter.go.set()
    assert await asyncio.gather(*orders) == [[1], [2]]


async def test_each_repetition_is_joined_to_an_order_of_its_own(clock: ManualClock) -> None:
    """Three equal orders whose answers were all lost are three, not one."""
    repeats, counter = Repeats[list[int]](clock), Counter()
    numbers = (0, 0, 0, 1, 1, 1, 2, 2, 2)
    orders = await soon(*(repeats.once("me", number, counter.order()) for number in numbers))
    counter.go.set()
    assert await asyncio.gather(*orders) == [[1], [2], [3]] * 3


async def test_what_was_answered_is_not_repeated(clock: ManualClock) -> None:
    repeats, counter = Repeats[list[int]](clock), Counter()
    counter.go.set()
    first = await repeats.once("me", 0, counter.order())
    assert await repeats.once("me", 1, counter.order()) is first
    repeats.answered("me", first)
    assert await repeats.once("me", 1, counter.order()) == [2]


async def test_who_never_came_back_is_forgotten(clock: ManualClock) -> None:
    repeats, counter = Repeats[list[int]](clock), Counter()
    counter.go.set()
    await repeats.once("me", 0, counter.order())
    clock.advance(REPEAT_SECONDS + 1)
    assert await repeats.once("me", 1, counter.order()) == [2]
    clock.advance(REPEAT_SECONDS + 1)
    await repeats.once("you", 0, counter.order())
    assert set(repeats._unanswered) == {"you"}


async def test_a_first_that_failed_is_ordered_by_its_repetition(clock: ManualClock) -> None:
    repeats, counter = Repeats[list[int]](clock), Counter()
    orders = await soon(repeats.once("me", 0, counter.order(fails=True)), repeats.once("me", 1, counter.order()))
    counter.go.set()
    first, second = await asyncio.gather(*orders, return_exceptions=True)
    assert (type(first), second) == (ConnectionError, [2])


async def test_others_and_other_content_are_not_joined(clock: ManualClock) -> None:
    repeats, counter = Repeats[list[int]](clock), Counter()
    orders = await soon(repeats.once(("me", "a"), 0, counter.order()), repeats.once(("you", "a"), 1, counter.order()))
    counter.go.set()
    assert await asyncio.gather(*orders) == [[1], [2]]


# -- over HTTP


async def hang_up_while_it_is_written(house: ApiHouse, body: bytes) -> None:
    """A request whose client is gone before the answer; returns when the order is in the database."""
    _, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(
        f"POST {CREATE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: application/json\r\nX-Stainless-Retry-Count: 0\r\n\r\n".encode()
    )
    writer.write(body)
    writer.close()
    async with asyncio.timeout(10):
        while (await house.left_behind())[0] == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_an_sdk_that_repeats_gets_the_order_it_made(tmp_path: Path) -> None:
    """It hung up before the answer came, and sends the same again with a count."""
    async with open_api(tmp_path, sockets=True) as house:
        body = b'{"prompt": "a banana"}'
        await hang_up_while_it_is_written(house, body)
        again = await house.client.post(
            CREATE,
            content=body,
            headers={"Content-Type": "application/json", "X-Stainless-Retry-Count": "1"},
        )
        assert again.status_code == 202
        assert (await house.left_behind())[0] == 1
        another = await house.client.post(CREATE, json={"prompt": "a banana"}, headers={"X-Stainless-Retry-Count": "1"})
        assert another.json()["taskId"] != again.json()["taskId"]


async def test_files_are_compared_by_their_bytes(tmp_path: Path) -> None:
    """The boundary between the parts is another one each time. The images are read twice, and still arrive whole."""
    async with open_api(tmp_path) as house:
        posts = [
            house.client.post(
                CREATE,
                data={"prompt": "x"},
                files={"image": ("a.png", png(color), "image/png")},
                headers={"X-Stainless-Retry-Count": "0"},
            )
            for color in ("red", "blue")
        ]
        red, blue = await asyncio.gather(*posts)
        assert (red.status_code, blue.status_code) == (202, 202)
        tasks, images, _, files = await house.left_behind()
        assert (tasks, images, files) == (2, 2, 2)


@pytest.mark.parametrize("count", ["", "-1", "x", "1" * 9])
async def test_a_count_that_is_none_counts_nothing(tmp_path: Path, count: str) -> None:
    async with open_api(tmp_path) as house:
        answer = await house.client.post(CREATE, json={"prompt": "x"}, headers={"X-Stainless-Retry-Count": count})
        assert answer.status_code == 202
