"""Webhooks to callers: every end is delivered, whatever receivers, network and our own processes do."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import open_services
from broker.clock import SystemClock
from broker.errors import ApiError
from broker.net.fetcher import Fetcher
from broker.notifications.deliverer import CONCURRENCY, HOST_CONCURRENCY
from broker.orders import ImageParams, OrderRequest
from broker.reports import Failed
from broker.services import Services
from broker.settings import Settings
from broker.tasks import lifecycle
from broker.tasks.lifecycle import Changes, DownloadFailure
from storage.deliveries import Deliveries, Delivery, DeliveryStatus
from storage.errors import Stale, StorageError
from storage.images import StoredImage
from storage.sql.database import Outcome, Statement
from storage.sql.scope import EVERYTHING
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from storage.states import TaskState
from storage.tasks import Task
from tests.integration.faults.test_worker import turn
from tests.support.api import task_cache, with_parts
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock
from tests.support.faulty_http import PUBLIC, Names, Network, Script, Visit, answers, head, rst, sends, silence
from tests.support.process import until
from tests.support.servers.postgres import Postgres
from tests.support.servers.receiver import Receiver, receiving
from webhooks.events import Event
from webhooks.retry_policy import RETRY_SCHEDULE
from webhooks.signatures.base import Proof
from webhooks.signatures.standard import StandardSignature, write_secret

pytestmark = pytest.mark.anyio

KEYS = (b"n" * 32, b"o" * 32)
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A broker with an idle worker, and a receiver of webhooks."""

    services: Services
    receiver: Receiver
    clock: ManualClock

    async def order(self, url: str | None = None) -> Task:
        request = OrderRequest(params=ImageParams(prompt="a red bicycle"), callback_url=url or self.receiver.url)
        return (await create_tasks(self.services, request))[0]

    async def ended(self) -> Task:
        """One that was canceled just now."""
        task = await self.order()
        return await self.services.canceler.cancel_task(task.id, EVERYTHING)

    async def turn(self) -> None:
        await turn(self.services)

    async def delivery(self) -> Delivery:
        """The only one there is."""
        (delivery,) = await self.services.tables.deliveries.list_newest(limit=10)
        return delivery


@asynccontextmanager
async def a_scene(folder: Path, clock: ManualClock, receiver: Receiver, **settings: Any) -> AsyncIterator[Scene]:
    secrets = tuple(write_secret(key) for key in KEYS)
    async with still(folder, clock, callback_allow=(receiver.host,), webhook_secrets=secrets, **settings) as services:
        services.worker.deliverer.random = lambda: 0.0
        yield Scene(services=services, receiver=receiver, clock=clock)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def scene(tmp_path: Path, clock: ManualClock, receiver: Receiver) -> AsyncIterator[Scene]:
    async with a_scene(tmp_path, clock, receiver) as scene:
        yield scene


def calling_with(scene: Scene, fetcher: Fetcher) -> Scene:
    """The same broker, whose orders check the addresses of callers with another fetcher."""
    orders = scene.services.orders
    planner = replace(orders.planner, caller_fetcher=fetcher)
    return replace(scene, services=with_parts(scene.services, orders=replace(orders, planner=planner)))


# -- the retry schedule


async def test_dead_receiver_gets_one_attempt_and_six_retries(
    tmp_path: Path, clock: ManualClock, receiver: Receiver
) -> None:
    """At the pauses of the contract, and then no more."""
    async with a_scene(tmp_path, clock, receiver, retention_hours=48) as scene:
        receiver.script = answers("500 Internal Server Error")
        await scene.ended()
        await scene.turn()
        for attempts, pause in enumerate(RETRY_SCHEDULE, 1):
            clock.advance(pause - 1)
            await scene.turn()
            assert len(receiver.received) == attempts, "not before its time"
            clock.advance(1)
            await scene.turn()
        assert len(receiver.received) == 7
        delivery = await scene.delivery()
        ended = (DeliveryStatus.FAILED, 7, None, 500)
        assert (delivery.outcome, delivery.attempts, delivery.due_at, delivery.last_status) == ended
        tries = await scene.services.tables.deliveries.list_attempts(delivery.id)
        assert [one.status for one in tries] == [500] * 7
        assert [round(b.at - a.at) for a, b in itertools.pairwise(tries)] == list(RETRY_SCHEDULE)


async def test_no_retry_is_scheduled_after_the_retention_of_the_task(
    tmp_path: Path, clock: ManualClock, receiver: Receiver
) -> None:
    async with a_scene(tmp_path, clock, receiver, retention_hours=1) as scene:
        receiver.script = answers("500 Internal Server Error")
        await scene.ended()
        for pause in RETRY_SCHEDULE[:3]:
            await scene.turn()
            clock.advance(pause)
        await scene.turn()
        delivery = await scene.delivery()
        assert (delivery.outcome, delivery.attempts, delivery.due_at) == (DeliveryStatus.FAILED, 4, None)


async def test_attempts_share_id_and_body_and_are_signed_each_at_its_time(scene: Scene) -> None:
    scene.receiver.script = answers("503 Service Unavailable")
    await scene.ended()
    for pause in (5, 300, 1800):
        await scene.turn()
        message = scene.receiver.received[-1]
        now = scene.clock.now()
        assert message.headers["webhook-timestamp"] == str(int(now))
        for key in KEYS:
            assert StandardSignature([key]).verify(message.headers, message.body, (), now) == Proof.BODY_VERIFIED
        scene.clock.advance(pause)
    assert len(scene.receiver.received) == 3
    assert len({(message.id, message.body) for message in scene.receiver.received}) == 1
    assert scene.receiver.received[0].headers["content-type"] == "application/json"


async def test_recovered_receiver_gets_the_webhook_once(scene: Scene) -> None:
    scene.receiver.script = answers("502 Bad Gateway")
    await scene.ended()
    await scene.turn()
    scene.receiver.script = answers("200 OK", b"thanks")
    scene.clock.advance(5)
    await scene.turn()
    delivery = await scene.delivery()
    assert (delivery.outcome, delivery.attempts, delivery.delivered_at) == (
        DeliveryStatus.DELIVERED,
        2,
        scene.clock.now(),
    )
    scene.clock.advance(30)
    await scene.turn()
    assert len(scene.receiver.received) == 2


async def endless(visit: Visit) -> None:
    await visit.send(head("200 OK", "Transfer-Encoding: chunked"))
    while True:
        await visit.send(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")


REACTIONS: dict[str, tuple[Script, DeliveryStatus, float | None, str]] = {
    "no content": (answers("204 No Content"), DeliveryStatus.DELIVERED, None, ""),
    "a page that never ends": (endless, DeliveryStatus.DELIVERED, None, ""),
    "a body cut off": (sends(head("200 OK", "Content-Length: 9"), b"x"), DeliveryStatus.DELIVERED, None, ""),
    "gone": (answers("410 Gone"), DeliveryStatus.GONE, None, "HTTP 410"),
    "too many": (answers("429 Too Many Requests", b"", "Retry-After: 120"), DeliveryStatus.PENDING, 120, "HTTP 429"),
    "much later": (answers("503 Unavailable", b"", "Retry-After: 86400"), DeliveryStatus.PENDING, 3605, "HTTP 503"),
    "moved": (
        answers("302 Found", b"", "Location: /elsewhere"),
        DeliveryStatus.PENDING,
        5,
        "redirects are not followed",
    ),
    "moved for good": (answers("308 Moved", b"", "Location: /elsewhere"), DeliveryStatus.PENDING, 5, "not followed"),
    "not found": (answers("404 Not Found"), DeliveryStatus.PENDING, 5, "HTTP 404"),
    "silence": (silence, DeliveryStatus.PENDING, 5, "too slow"),
    "a reset": (rst, DeliveryStatus.PENDING, 5, "the connection broke"),
    "half a head": (sends(b"HTTP/1.1 200 O"), DeliveryStatus.PENDING, 5, "cut short or is not HTTP"),
    "no HTTP": (sends(b"SSH-2.0-OpenSSH\r\n\r\n"), DeliveryStatus.PENDING, 5, "cut short or is not HTTP"),
}


@pytest.mark.parametrize("what", REACTIONS)
async def test_response_of_the_receiver_decides(scene: Scene, what: str) -> None:
    script, fate, pause, reason = REACTIONS[what]
    scene.receiver.script = script
    scene.services.worker.deliverer.timeout_seconds = 0.3
    await scene.ended()
    await scene.turn()
    delivery = await scene.delivery()
    assert (delivery.outcome, delivery.attempts) == (fate, 1)
    assert delivery.due_at == (None if pause is None else scene.clock.now() + pause)
    assert reason in (delivery.reason or "")
    assert scene.receiver.server.connections == 1
    if fate != DeliveryStatus.PENDING:
        scene.clock.advance(100 * HOUR)
        await scene.turn()
        assert scene.receiver.server.connections == 1, "it is over"


async def test_unreachable_receiver_is_retried(scene: Scene) -> None:
    async with receiving() as gone:
        services = scene.services
        fetcher = Fetcher(allow=[gone.host])
        services.worker.deliverer.fetcher = fetcher
        task = await calling_with(scene, fetcher).order(gone.url)
    await services.canceler.cancel_task(task.id, EVERYTHING)
    await scene.turn()
    delivery = await scene.delivery()
    assert (delivery.outcome, delivery.reason, delivery.last_status) == (DeliveryStatus.PENDING, "no connection", None)


# -- crashes and other workers


async def test_crash_before_the_delivery_only_delays_it(tmp_path: Path, clock: ManualClock, receiver: Receiver) -> None:
    async with a_scene(tmp_path, clock, receiver) as scene:
        task = await scene.ended()
    assert receiver.received == []
    async with a_scene(tmp_path, clock, receiver) as scene:
        await scene.turn()
    (message,) = receiver.received
    assert message.document["data"]["id"] == task.id


async def test_crash_during_a_delivery_repeats_it_after_the_lease(
    tmp_path: Path, clock: ManualClock, receiver: Receiver
) -> None:
    """At least once: whether the first attempt arrived is unknown, so the second has the same id."""
    async with a_scene(tmp_path, clock, receiver) as scene:
        await scene.ended()
        (claimed,) = await _claimed(scene.services)
        crashing: Any = Unrecorded(scene.services.tables.deliveries)
        with pytest.raises(StorageError):
            await replace(scene.services.worker.deliverer, deliveries=crashing).deliver(claimed)
    async with a_scene(tmp_path, clock, receiver) as scene:
        await scene.turn()
        assert len(receiver.received) == 1, "another worker may still be delivering it"
        clock.advance(scene.services.settings.lease + 1)
        await scene.turn()
    first, second = receiver.received
    assert (first.id, first.body) == (second.id, second.body)


class Unrecorded:
    """Deliveries of a process that ends before it records an attempt."""

    def __init__(self, deliveries: Deliveries) -> None:
        self._deliveries = deliveries

    def __getattr__(self, name: str) -> Any:
        return getattr(self._deliveries, name)

    async def record_attempt(self, *_: Any, **__: Any) -> None:
        raise StorageError("the process is gone")


async def test_stop_releases_interrupted_deliveries(tmp_path: Path, receiver: Receiver) -> None:
    """The next process need not wait for the end of a lease."""
    clock = ManualClock(time.time())
    receiver.script = silence
    async with a_scene(tmp_path, clock, receiver) as scene:
        await scene.ended()
        worker = scene.services.worker
        worker.drain_seconds = 0.05
        running = asyncio.create_task(worker.run())
        await receiver.wait_received(1)
        worker.stop()
        await running
        delivery = await scene.delivery()
        assert (delivery.leased_by, delivery.attempts, delivery.outcome) == ("", 0, DeliveryStatus.PENDING)
        assert worker.deliverer.free_slots == CONCURRENCY
    receiver.script = answers("204 No Content")
    async with a_scene(tmp_path, clock, receiver) as scene:
        await scene.turn()
        assert (await scene.delivery()).outcome == DeliveryStatus.DELIVERED


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_two_processes_deliver_a_webhook_once(
    tmp_path: Path, receiver: Receiver, postgres: Postgres, store: str
) -> None:
    clock = ManualClock(time.time())
    settings = {"database_url": await postgres.fresh()} if store == "postgres" else {}
    async with (
        a_scene(tmp_path, clock, receiver, **settings) as one,
        a_scene(tmp_path, clock, receiver, **settings) as other,
    ):
        tasks = [await one.ended() for _ in range(24)]
        for _ in range(4):
            await asyncio.gather(one.turn(), other.turn())
        assert {d.outcome for d in await one.services.tables.deliveries.list_newest(limit=50)} == {
            DeliveryStatus.DELIVERED
        }
    received_ids = [message.document["data"]["id"] for message in receiver.received]
    assert sorted(received_ids) == sorted(task.id for task in tasks)


async def test_attempt_that_outlasts_its_lease_is_not_repeated_by_another_process(
    tmp_path: Path, receiver: Receiver
) -> None:
    """A lease may be shorter than the time-out of an attempt: it is renewed while the attempt runs."""
    clock, lease_seconds = ManualClock(time.time()), 0.1
    receiver.script = silence
    async with (
        a_scene(tmp_path, clock, receiver, lease=lease_seconds) as one,
        a_scene(tmp_path, clock, receiver, lease=lease_seconds) as other,
    ):
        await one.ended()
        one.services.worker.drain_seconds = 0.0
        running = asyncio.create_task(one.services.worker.run())
        await receiver.wait_received(1)

        async def is_renewed() -> bool:
            return (await one.delivery()).lease_until == clock.now() + lease_seconds

        for _ in range(4):
            clock.advance(lease_seconds / 2)
            await until(is_renewed)
            await other.turn()
        one.services.worker.stop()
        await running
    assert len(receiver.received) == 1


async def test_result_after_the_end_of_the_lease_changes_nothing(scene: Scene) -> None:
    deliverer = scene.services.worker.deliverer
    scene.receiver.script = answers("500 Internal Server Error")
    await scene.ended()
    (sleeper,) = await _claimed(scene.services)
    scene.clock.advance(scene.services.settings.lease + 1)
    await scene.turn()
    before = await scene.delivery()
    scene.receiver.script = answers("410 Gone")
    await deliverer.deliver(sleeper)
    assert await scene.delivery() == before
    assert [one.status for one in await deliverer.deliveries.list_attempts(before.id)] == [500]


class Doubtful(SqliteDatabase):
    """A database that runs every transaction twice, as after an unknown outcome."""

    async def transact(self, *statements: Statement, wake: Sequence[str] = ()) -> list[Outcome]:
        await super().transact(*statements, wake=wake)
        return await super().transact(*statements, wake=wake)


async def test_repeated_transaction_delivers_one_webhook(
    tmp_path: Path, clock: ManualClock, receiver: Receiver
) -> None:
    async with a_scene(tmp_path, clock, receiver) as scene:
        task = await scene.order()
    settings = scene.services.settings

    def open_doubtful(chosen: Settings) -> Doubtful:
        return Doubtful(sqlite_path(chosen.database))

    async with open_services(settings, clock=clock, open_database=open_doubtful) as services:
        await services.canceler.cancel_task(task.id, EVERYTHING)
        await turn(services)
        (delivery,) = await services.tables.deliveries.list_newest(limit=10)
        assert (delivery.outcome, delivery.attempts) == (DeliveryStatus.DELIVERED, 1)
    assert receiver.types == ["task.canceled"]


async def test_slow_receiver_does_not_delay_others(tmp_path: Path) -> None:
    """Many webhooks to a receiver that never answers, and after them one to a receiver that does."""
    async with receiving() as slow, receiving() as quick:
        slow.script = silence
        hosts = (slow.host, quick.host)
        async with still(tmp_path, SystemClock(), callback_allow=hosts, rate_per_minute=1000) as services:
            services.worker.deliverer.timeout_seconds = 0.3
            for url in (*[slow.url] * 2 * CONCURRENCY, quick.url):
                request = OrderRequest(params=ImageParams(prompt="a red bicycle"), callback_url=url)
                await services.canceler.cancel_task((await create_tasks(services, request))[0].id, EVERYTHING)
            working = asyncio.create_task(services.worker.run())
            await until(lambda: _has_received(quick))
            assert slow.server.connections <= 2 * HOST_CONCURRENCY
            services.worker.stop()
            await working


async def _has_received(receiver: Receiver) -> bool:
    return bool(receiver.received)


async def _deliver_all(scene: Scene, deliveries: Sequence[Delivery]) -> None:
    await asyncio.gather(*(scene.services.worker.deliverer.deliver(delivery) for delivery in deliveries))


async def _write_webhooks(scene: Scene, *hosts: str) -> None:
    """One webhook to each host, the first one the most overdue."""
    for number, host in enumerate(hosts):
        one = Delivery(
            id=f"evt_{number}_{host}",
            caller="c",
            task_id="task_x",
            type="task.failed",
            url="",
            host=host,
            body="{}",
            due_at=float(number),
            created_at=0.0,
        )
        await scene.services.database.transact(scene.services.tables.deliveries.insert_delivery(one))


async def test_host_gets_two_webhooks_at_a_time(scene: Scene) -> None:
    await _write_webhooks(scene, *["a.example"] * 20, "b.example")
    claimed = [*await _claimed(scene.services), *await _claimed(scene.services)]
    assert [delivery.host for delivery in claimed] == ["a.example", "a.example", "b.example"]
    leased = [d for d in await scene.services.tables.deliveries.list_newest(limit=200) if d.leased_by]
    assert len(leased) == 3, "the others are free for other processes"


async def test_next_webhook_to_a_host_follows_when_a_slot_is_free(scene: Scene) -> None:
    for _ in range(5):
        await scene.ended()
    first = await _claimed(scene.services)
    assert (len(first), await _claimed(scene.services)) == (HOST_CONCURRENCY, [])
    assert scene.services.worker.deliverer.pause_seconds, "no claim can succeed until an attempt has ended"
    await _deliver_all(scene, first)
    await scene.turn()
    assert len(scene.receiver.received) == 5


async def test_process_delivers_sixteen_webhooks_at_a_time(scene: Scene) -> None:
    await _write_webhooks(scene, *(f"host{n}.example" for n in range(20)))
    assert (len(await _claimed(scene.services)), await _claimed(scene.services)) == (CONCURRENCY, [])


# -- an event exists if and only if the task has ended

Ending = Callable[[Services, Task], Awaitable[None]]


async def _settle(services: Services, task: Task, decide: Callable[[Task], Changes]) -> None:
    row = await services.tables.tasks.get(task.id)
    assert row is not None
    await services.worker.steps.transitions.apply(row, lambda now, _: decide(now), is_leased=False)


async def _fetching(services: Services, task: Task) -> None:
    tasks, now = services.tables.tasks, services.clock.now()
    row = await tasks.get(task.id)
    assert row is not None
    image = StoredImage(
        name=f"generated_{task.id[5:]}.png",
        owner=task.id,
        kind="result",
        position=0,
        blob="b",
        media_type="image/png",
        size=1,
        width=4,
        height=4,
        sha256="0" * 64,
        created_at=now,
    )
    found = {"outputs": ("https://a.example/1",), "billed": "yes", "deadline_at": now}
    values = {"state": TaskState.FETCHING, "attempt": 1, **found}
    await services.database.transact(tasks.update_task(row, **values))
    await services.database.transact(
        tasks.lock_task(task.id, TaskState.FETCHING), services.tables.images.insert_image(image)
    )


async def complete(services: Services, task: Task) -> None:
    policy, now = services.worker.steps.transitions.policy, services.clock.now()
    await _settle(services, task, lambda row: lifecycle.downloaded(row, now, policy, 1, []))


async def succeed(services: Services, task: Task) -> None:
    await _fetching(services, task)
    await complete(services, task)


async def fail(services: Services, task: Task) -> None:
    report = Failed(code="safety_input", message="no", retryable=False, billed="no")
    policy, now = services.worker.steps.transitions.policy, services.clock.now()
    await _settle(services, task, lambda row: lifecycle.upload_failed(row, now, policy, report))


async def cancel(services: Services, task: Task) -> None:
    await services.canceler.cancel_task(task.id, EVERYTHING)


async def fail_early_and_for_good(services: Services, task: Task) -> None:
    """Fail at the deadline; a day later the image is given up."""
    policy, dead = services.worker.steps.transitions.policy, DownloadFailure(code="result_gone", message="404")
    await _fetching(services, task)
    for later in (1.0, 2.0, policy.result_kept_seconds + 3.0):
        now = services.clock.now() + later
        await _settle(services, task, lambda row, now=now: lifecycle.downloaded(row, now, policy, 0, [dead]))  # type: ignore[misc]


async def fail_and_succeed(services: Services, task: Task) -> None:
    policy, dead = services.worker.steps.transitions.policy, DownloadFailure(code="result_gone", message="404")
    await _fetching(services, task)
    now = services.clock.now() + 1
    await _settle(services, task, lambda row: lifecycle.downloaded(row, now, policy, 0, [dead]))
    await complete(services, task)


async def nothing(services: Services, task: Task) -> None:
    """Leave the task unfinished."""
    await _fetching(services, task)


ENDINGS: dict[str, tuple[Ending, list[Event]]] = {
    "completed": (succeed, [Event.COMPLETED]),
    "failed": (fail, [Event.FAILED]),
    "canceled": (cancel, [Event.CANCELED]),
    "failed twice": (fail_early_and_for_good, [Event.FAILED]),
    "failed, then completed": (fail_and_succeed, [Event.FAILED, Event.COMPLETED]),
    "not ended": (nothing, []),
}


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
@pytest.mark.parametrize("how", ENDINGS)
async def test_every_end_is_delivered_once_with_the_body_of_a_poll(
    tmp_path: Path, receiver: Receiver, postgres: Postgres, how: str, store: str
) -> None:
    ending, events = ENDINGS[how]
    settings = {"database_url": await postgres.fresh()} if store == "postgres" else {}
    async with a_scene(tmp_path, ManualClock(time.time()), receiver, **settings) as scene:
        task = await scene.order()
        await ending(scene.services, task)
        deliveries = await scene.services.tables.deliveries.list_newest(limit=10)
        assert sorted(d.type for d in deliveries) == sorted(events)
        await asyncio.gather(*(scene.services.worker.deliverer.deliver(d) for d in await _claimed(scene.services)))
        assert sorted(receiver.types) == sorted(events)
        if events:
            row = await scene.services.queries.get(task.id, EVERYTHING)
            poll = (await task_cache(scene.services).task_data(row, "en")).to_document()
            (last,) = [m.document for m in receiver.received if m.document["type"] == f"task.{poll['status']}"]
            later = {"updatedAt": None}  # a task that failed early may have changed since
            assert {**last["data"], **later} == {**poll, **later}
            assert last.keys() == {"type", "timestamp", "data"}


async def _claimed(services: Services) -> list[Delivery]:
    return await services.worker.deliverer.claim(services.worker.leases.create_lease())


async def test_task_without_callback_url_has_no_webhook(scene: Scene) -> None:
    (task,) = await create_tasks(scene.services, OrderRequest(params=ImageParams(prompt="a red bicycle")))
    await scene.services.canceler.cancel_task(task.id, EVERYTHING)
    assert await scene.services.tables.deliveries.list_newest(limit=10) == []


async def test_uncommitted_end_has_no_webhook(scene: Scene) -> None:
    """Row and webhook are one transaction: the loser of a race writes neither."""
    broker = scene.services
    task = await scene.order()
    events = await scene.services.worker.steps.transitions.outbox.enqueue_event(task, await _as_canceled(task))
    await scene.services.database.transact(broker.tables.tasks.update_task(task, step_retries=1))
    with pytest.raises(Stale):
        await scene.services.database.transact(
            broker.tables.tasks.update_task(task, state=TaskState.CANCELED), *events.statements
        )
    assert await broker.tables.deliveries.list_newest(limit=10) == []


async def _as_canceled(task: Task) -> Task:
    return Task(**{**vars(task), "state": TaskState.CANCELED, "ended_at": 1.0})


# -- blocked addresses

FORBIDDEN = [
    "http://127.0.0.1/",
    "http://[::1]/",
    "http://10.0.0.1/hook",
    "http://169.254.169.254/latest/meta-data",
    "http://192.168.1.1/",
    "http://[::ffff:127.0.0.1]/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://localhost/",
    "http://postgres/",
    "http://broker.internal/",
    "https://example.com:8443/",
    "https://example.com:22/",
    "https://user:word@example.com/",
    "ftp://example.com/",
    "file:///etc/passwd",
    "gopher://example.com/",
    "javascript:alert(1)",
    "https://",
    "https:///hook",
    "//example.com/hook",
    "https://exa mple.com/",
    "https://example.com\\@127.0.0.1/",
]
UNFIT = ["https://example.com/\udc80", "https://example.com/\x00", "https://example.com/" + "x" * 2048]
"""URLs that a row cannot store."""


@pytest.mark.parametrize("url", [*FORBIDDEN, *UNFIT])
async def test_blocked_callback_url_is_refused_in_the_request(scene: Scene, url: str) -> None:
    orders = calling_with(scene, Fetcher(resolve=Names())).services.orders
    request = OrderRequest(params=ImageParams(prompt="a red bicycle"), callback_url=url)
    plan = await orders.plan("house:local", request)
    for attempt in (orders.create("house:local", request, plan), orders.dry_run("house:local", request, plan)):
        with pytest.raises(ApiError) as refused:
            await attempt
        assert (refused.value.code, refused.value.field) == ("invalid_request", "callbackUrl")
        assert "https://" in refused.value.message, "the cure"
        assert "word" not in refused.value.message
    assert await scene.services.queries.list_newest(EVERYTHING, status=None, limit=5, before=None) == []


@pytest.mark.parametrize("bad", [["10.0.0.1"], [PUBLIC, "127.0.0.1"], ["::1"], ["64:ff9b::a00:1"]])
async def test_name_of_a_private_address_is_refused_in_the_request(scene: Scene, bad: list[str]) -> None:
    fetcher = Fetcher(resolve=Names([bad]), exemption="BROKER_CALLBACK_ALLOW")
    with pytest.raises(ApiError, match="BROKER_CALLBACK_ALLOW"):
        await calling_with(scene, fetcher).order("https://hooks.example.com/x")


async def _unanswered(host: str, port: int) -> list[str]:
    raise OSError("the name server is down")


async def _never(host: str, port: int) -> list[str]:
    await asyncio.Event().wait()
    return []


@pytest.mark.parametrize("resolve", [_unanswered, _never])
async def test_failing_name_server_refuses_nothing(resolve: Any) -> None:
    await Fetcher(resolve=resolve).validate("https://hooks.example.com/x", dns_seconds=0.02)


async def test_allowlisted_host_is_not_resolved() -> None:
    names = Names()
    await Fetcher(allow=["receiver:9000"], resolve=names).validate("http://receiver:9000/hook")
    assert names.resolved == []


async def test_name_that_changes_to_a_private_address_is_not_called(scene: Scene) -> None:
    """DNS rebinding: public in the request, private at delivery, and public again in the end."""
    names = Names([[PUBLIC], ["127.0.0.1"], [PUBLIC, "10.0.0.1"], [PUBLIC]])
    network = Network([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
    fetcher = Fetcher(resolve=names, dial=network, tls=network.tls, exemption="BROKER_CALLBACK_ALLOW")
    scene.services.worker.deliverer.fetcher = fetcher
    task = await calling_with(scene, fetcher).order("http://hooks.example.com/x")
    await scene.services.canceler.cancel_task(task.id, EVERYTHING)
    for pause in RETRY_SCHEDULE[:2]:
        await scene.turn()
        delivery = await scene.delivery()
        assert "a private or special address" in (delivery.reason or "")
        assert (delivery.outcome, network.dialled) == (DeliveryStatus.PENDING, [])
        scene.clock.advance(pause)
    await scene.turn()
    assert ((await scene.delivery()).outcome, network.dialled) == (DeliveryStatus.DELIVERED, [(PUBLIC, 80)])


@pytest.mark.parametrize("url", FORBIDDEN)
async def test_blocked_url_in_a_row_is_not_called(scene: Scene, url: str) -> None:
    """The check of the request is not the guard; and an invalid URL does not block the end of a task."""
    network = Network()
    scene.services.worker.deliverer.fetcher = Fetcher(resolve=Names(), dial=network, tls=network.tls)
    task = await scene.order()
    await scene.services.database.execute(
        "UPDATE tasks SET callback_url = :url, version = version + 1 WHERE id = :id", url=url, id=task.id
    )
    await scene.services.canceler.cancel_task(task.id, EVERYTHING)
    await scene.turn()
    delivery = await scene.delivery()
    assert network.dialled == []
    assert (delivery.outcome, delivery.attempts) == (DeliveryStatus.PENDING, 1)


# -- retention


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_undelivered_webhook_is_deleted_with_its_task(
    tmp_path: Path, receiver: Receiver, postgres: Postgres, store: str
) -> None:
    """A body contains the prompt, which must not outlive the retention time."""
    settings = {"database_url": await postgres.fresh()} if store == "postgres" else {}
    async with a_scene(tmp_path, ManualClock(time.time()), receiver, **settings) as scene:
        receiver.script = answers("500 Internal Server Error")
        task = await scene.ended()
        for pause in RETRY_SCHEDULE[:5]:
            await scene.turn()
            scene.clock.advance(pause)
        assert (await scene.delivery()).outcome == DeliveryStatus.PENDING
        living = await scene.ended()
        scene.clock.advance(24 * HOUR - sum(RETRY_SCHEDULE[:5]))
        (under_way, *_) = [d for d in await _claimed(scene.services) if d.task_id == task.id]
        await scene.turn()
        row = await scene.services.tables.tasks.get(task.id)
        assert row is not None
        assert (row.state, row.prompt) == (TaskState.EXPIRED, "")
        assert (await scene.delivery()).task_id == living.id
        await scene.services.worker.deliverer.deliver(under_way)  # it is sent, and nothing is stored
        left = await scene.services.database.fetch("SELECT DISTINCT delivery_id AS id FROM delivery_attempts")
        assert {line["id"] for line in left} <= {(await scene.delivery()).id}


async def test_delivered_webhook_is_deleted_with_its_task(scene: Scene) -> None:
    await scene.ended()
    await scene.turn()
    scene.clock.advance(24 * HOUR)
    await scene.turn()
    assert await scene.services.tables.deliveries.list_newest(limit=5) == []
    assert await scene.services.database.fetch("SELECT * FROM delivery_attempts") == []


class Interrupted:
    """A database on which something happens between a read and the change that follows from it."""

    def __init__(self, database: Any, happens: Callable[[], Awaitable[Any]]) -> None:
        self._database = database
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def fetch(self, sql: str, **params: Any) -> Any:
        rows = await self._database.fetch(sql, **params)
        await self._happens()
        return rows


async def test_webhook_replayed_during_its_deletion_stays(scene: Scene) -> None:
    await scene.ended()
    await scene.turn()
    broker, delivery = scene.services, await scene.delivery()
    interrupted: Any = Interrupted(
        scene.services.database, lambda: broker.tables.deliveries.replay(delivery.id, scene.clock.now())
    )
    assert await Deliveries(interrupted).delete_before(scene.clock.now() + 100, 10) == 0
    assert len(await broker.tables.deliveries.list_attempts(delivery.id)) == 1
    await scene.turn()
    assert await broker.tables.deliveries.delete_before(scene.clock.now() + 100, 10) == 1
