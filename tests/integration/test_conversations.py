"""Conversations over all processes: the order of turns, what each continues, retention, deletion, limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from broker.bootstrap import load_settings, open_services
from broker.clock import SystemClock
from broker.conversations.service import ConversationService, NextTurn
from broker.errors import ApiError
from broker.ordering.drafts import Continuation, PlannedOrder
from broker.orders import ImageParams, OrderRequest, UploadedReference
from broker.services import Services
from storage.accounts.users import User
from storage.blobs.store import BlobMissing
from storage.ids import new_user_id, reference_owner
from storage.images import Images, StoredImage
from storage.sql.database import Statement
from storage.sql.scope import HOUSE, Scope
from storage.states import TaskState
from storage.tasks import Task
from tests.accounts.test_own_lanes import Recorder
from tests.contracts.databases import DATABASES
from tests.examples.provider import EXAMPLE
from tests.support.api import png
from tests.support.brokers import still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

LOCAL = "house:local"
DAY = 24 * 3600.0


class Upload:
    """An uploaded file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._read()

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def _read(self) -> AsyncIterator[bytes]:
        yield self.data


@dataclass(frozen=True)
class DyingProcess:
    """A continuation whose process dies as soon as the order is durable."""

    turn: NextTurn

    async def complete(self, caller: str, order: PlannedOrder) -> PlannedOrder:
        return await self.turn.complete(caller, order)

    def statements(self, tasks: Sequence[Task]) -> Sequence[Statement]:
        return self.turn.statements(tasks)

    async def check(self) -> None:
        await self.turn.check()

    async def begin(self, tasks: Sequence[Task]) -> None:
        return None


def service_of(services: Services) -> ConversationService:
    return services.conversation_parts.service


async def begin(services: Services, owner: str = LOCAL, title: str | None = None) -> str:
    return (await service_of(services).create(owner, title)).id


async def add_turn(
    services: Services,
    conversation: str,
    prompt: str,
    *images: bytes,
    parent: str | None = None,
    dies: bool = False,
    service: ConversationService | None = None,
    **changes: Any,
) -> list[Task]:
    """Order the images of a turn; return its tasks as they are then."""
    turn = await (service or service_of(services)).next_turn(HOUSE, conversation, parent)
    request = OrderRequest(
        params=ImageParams(prompt=prompt, model=changes.pop("model", "nano-banana-pro")),
        sources=tuple(UploadedReference(chunks=Upload(image)) for image in images),
        conversation=turn.request_key,
        **changes,
    )
    continuation: Continuation = DyingProcess(turn) if dies else turn
    created = await services.orders.create(LOCAL, request, await services.orders.plan(LOCAL, request), continuation)
    return await rows(services, created.tasks)


async def rows(services: Services, tasks: Sequence[Task]) -> list[Task]:
    return await services.tables.tasks.list_of_batch(tasks[0].batch)


async def succeed(services: Services, task: Task, size: int | None = None, **changes: Any) -> StoredImage:
    """Let a task end with an image, like a worker; return it. size: what its row says."""
    now, content = services.clock.now(), f"the image of {task.id}".encode()
    async with services.blobs.new_draft(task.id) as draft:
        await draft.write(content)
        blob = await draft.commit()
    image = StoredImage(
        name=f"generated_{task.id.removeprefix('task_')}.png", owner=task.id, kind="result", position=0, blob=blob.name,
        media_type="image/png", size=size or blob.size, width=4, height=4, sha256=blob.sha256, created_at=now,
    )  # fmt: skip
    ended = {"state": TaskState.SUCCEEDED, "ended_at": now, "due_at": now + DAY, "outputs": (f"stored:{blob.name}",)}
    fresh = (await rows(services, [task]))[0] if task.version == 0 else await services.tables.tasks.get(task.id)
    assert fresh is not None
    await services.database.transact(
        services.tables.images.insert_image(image), services.tables.tasks.update_task(fresh, **ended, **changes)
    )
    return image


async def fail(services: Services, task: Task) -> None:
    now, fresh = services.clock.now(), await services.tables.tasks.get(task.id)
    assert fresh is not None
    ended = {"state": TaskState.FAILED, "ended_at": now, "due_at": now + DAY, "error_code": "no_image"}
    await services.database.transact(services.tables.tasks.update_task(fresh, **ended))


def shown(task: Task, *, past: bool = False) -> list[str]:
    """Return the blobs of the references that every provider gets, or of the others."""
    parts = [part for turn in task.turns for part in turn["parts"] if "reference" in part]
    hidden = {part["reference"] for part in parts if part.get("is_past")}
    return [ref["blob"] for position, ref in enumerate(task.references) if (position in hidden) == past]


async def keep(*processes: Services) -> list[bool]:
    return list(await asyncio.gather(*(one.conversation_parts.keeper.keep_once() for one in processes)))


@asynccontextmanager
async def two_processes(
    request: pytest.FixtureRequest, folder: Path, kind: str
) -> AsyncIterator[tuple[Services, Services]]:
    settings: dict[str, Any] = {"rate_per_minute": 10_000}
    if kind == "postgres":
        settings["database_url"] = await request.getfixturevalue("postgres").fresh()
    async with still(folder, SystemClock(), **settings) as one, still(folder, SystemClock(), **settings) as two:
        yield one, two


@pytest.mark.parametrize("kind", DATABASES)
async def test_turns_of_two_processes_are_made_in_one_line_also_when_processes_die(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """Each goes on from the image of the one before; one that failed, and one that was canceled, are passed over."""
    async with two_processes(request, tmp_path, kind) as (one, two):
        conversation = await begin(one)
        services, count = (one, two), 12
        await asyncio.gather(
            *(
                add_turn(services[number % 2], conversation, f"turn {number}", dies=number % 3 == 0)
                for number in range(count)
            )
        )
        views = await service_of(two).list_turns(HOUSE, conversation, before=None, limit=count + 1)
        turns = [view.turn for view in reversed(views)]
        assert [turn.number for turn in turns] == list(range(1, count + 1))
        assert [turn.parent_id for turn in turns] == [None, *(turn.id for turn in turns[:-1])]
        blob = None
        for number, turn in enumerate(turns):
            await keep(one, two)
            every = [(await one.tables.tasks.list_of_batch(other.batch))[0] for other in turns]
            task = every[number]
            if task.state == TaskState.CANCELED:
                continue
            assert [other.is_held for other in every[number:]] == [False, *([True] * (count - number - 1))]
            assert shown(task) == ([blob] if blob else []), turn
            assert task.mode == ("image-to-image" if blob else "text-to-image")
            if number in {0, 5}:
                await fail(two, task)
            else:
                blob = (await succeed(services[number % 2], task)).blob
            if number == 7:
                await one.canceler.cancel_task(every[8].id, HOUSE)
        assert await keep(one, two) == [False, False]
        assert not await one.tables.turns.has_waiting()


@pytest.mark.parametrize("kind", DATABASES)
async def test_limits_hold_when_requests_come_together(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    async with two_processes(request, tmp_path, kind) as (one, two):
        conversation = await begin(one)
        short = [(each, replace(service_of(each), max_turns=3)) for each in (one, two)]

        async def outcome(number: int) -> str:
            services, service = short[number % 2]
            try:
                await add_turn(services, conversation, f"turn {number}", png(), service=service)
            except ApiError as error:
                return error.code
            return "ok"

        ends = await asyncio.gather(*(outcome(number) for number in range(8)))
        assert sorted(ends) == ["conflict"] * 5 + ["ok"] * 3
        stored = await one.database.fetch("SELECT count(*) AS n FROM tasks")
        assert stored[0]["n"] == 3
        assert len([*(tmp_path / "blobs").rglob("refs_*.*")]) == 3, "a refused order leaves no file"

        owner, few = new_user_id(), replace(service_of(one), max_conversations=2)
        user = User(id=owner, name="n", name_key="n", password_hash="", created_at=1.0, updated_at=1.0)
        limited = {**vars(user), "quota": {"pins": 1}}
        await one.database.transact(one.tables.users.insert_user(User(**limited)))
        first, second = [await few.create(owner, title) for title in (None, "second")]
        with pytest.raises(ApiError) as refused:
            await few.create(owner, None)
        assert refused.value.code == "conflict"

        async def pin(services: Services, conversation_id: str) -> str:
            try:
                scope = Scope(owner=owner)
                return str((await service_of(services).change(scope, conversation_id, is_pinned=True)).pinned_at)
            except ApiError as error:
                return error.code

        pinned = await asyncio.gather(pin(one, first.id), pin(two, second.id))
        assert pinned.count("quota_exceeded") == 1
        assert (await one.quotas.read_state(owner))["pins"].used == 1
        kept = second if pinned[0] == "quota_exceeded" else first
        assert await pin(one, kept.id) != "quota_exceeded", "it is pinned already"
        assert await service_of(two).delete_of_owner(owner) == 2
        rest = await one.database.fetch("SELECT owner FROM conversations")
        assert [row["owner"] for row in rest] == [LOCAL]


async def test_conversation_is_kept_as_a_whole_until_it_is_idle_or_unpinned(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        conversation, tasks = await begin(services), []
        for number in range(3):  # each on another day
            (task,) = await add_turn(services, conversation, f"day {number}")
            tasks.append(task)
            await succeed(services, task)
            clock.advance(0.9 * DAY)
            await services.worker.clean_up()
        pinned = await begin(services)
        (other,) = await add_turn(services, pinned, "kept")
        await succeed(services, other)
        await service_of(services).change(HOUSE, pinned, is_pinned=True)

        async def states() -> list[TaskState]:
            found = [await rows(services, [task]) for task in (*tasks, other)]
            return [task.state for listed in found for task in listed]

        assert await states() == [TaskState.SUCCEEDED] * 4, "a turn of days ago stays while the conversation lives"
        clock.advance(0.2 * DAY)
        await services.worker.clean_up()
        assert await service_of(services).list_newest(HOUSE, before=None, limit=9) == [
            await service_of(services).get(HOUSE, pinned)
        ]
        clock.advance(0.1 * DAY)
        await services.worker.clean_up()
        assert await states() == [TaskState.EXPIRED] * 3 + [TaskState.SUCCEEDED]
        clock.advance(30 * DAY)
        await services.worker.clean_up()
        assert (await states())[-1] == TaskState.SUCCEEDED
        await service_of(services).change(HOUSE, pinned, is_pinned=False)
        for _ in range(2):
            clock.advance(1.01 * DAY)
            await services.worker.clean_up()
        assert (await states())[-1] == TaskState.EXPIRED
        running = await begin(services)
        (task,) = await add_turn(services, running, "slow")
        clock.advance(1.5 * DAY)
        await services.worker.retention.delete_leftovers()
        assert (await service_of(services).get(HOUSE, running)).turns == 1, "its last task has not ended"


async def test_deletion_ends_what_has_not_ended_and_goes_on_after_a_death(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        conversation, tables = await begin(services), services.tables
        (first,) = await add_turn(services, conversation, "done", png("red"))
        await succeed(services, first)
        (fetching,) = await add_turn(services, conversation, "paid")
        fresh = await tables.tasks.get(fetching.id)
        assert fresh is not None
        downloading = tables.tasks.update_task(fresh, state=TaskState.FETCHING, outputs=("https://x.example/a.png",))
        await services.database.transact(downloading)
        (held,) = await add_turn(services, conversation, "held")
        assert held.is_held
        await service_of(services).delete(HOUSE, conversation)
        for call in (
            service_of(services).get(HOUSE, conversation),
            service_of(services).next_turn(HOUSE, conversation),
            service_of(services).delete(HOUSE, conversation),
        ):
            with pytest.raises(ApiError, match="no conversation"):
                await call
        states = [(await rows(services, [task]))[0].state for task in (first, fetching, held)]
        assert states == [TaskState.EXPIRED, TaskState.FETCHING, TaskState.EXPIRED]
        left = await services.database.fetch("SELECT kind, owner FROM images")
        assert [row["owner"] for row in left] == [f"refs_{fetching.batch.removeprefix('batch_')}"], "its task runs"
        assert await keep(services) == [True], "the image is still being downloaded"
        await succeed(services, fetching)
        assert await keep(services) == [False]
        await services.worker.clean_up()
        assert [row["n"] for row in await services.database.fetch("SELECT count(*) AS n FROM images")] == [0]
        assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
        for table in ("conversations", "turns"):
            assert (await services.database.fetch(f"SELECT count(*) AS n FROM {table}"))[0]["n"] == 0


async def test_history_has_the_images_that_fit_and_no_words_of_the_model(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock, gemini_keys="key") as services:
        conversation = await begin(services)
        made = []
        for number in range(4):
            (task,) = await add_turn(services, conversation, f"turn {number}", model="nano-banana")
            words: dict[str, Any] = {
                "texts": (f"words {number}",),
                "turn": json.dumps({"parts": []}),
                "provider": "gemini",
            }
            made.append(await succeed(services, task, **words))
        (task,) = await add_turn(services, conversation, "more", png(), model="nano-banana")
        assert shown(task)[0] == made[3].blob
        assert len(shown(task)) == 2
        assert shown(task, past=True) == [made[2].blob], "Gemini takes three images for this model"
        said = [(turn["role"], [part["text"] for part in turn["parts"] if "text" in part]) for turn in task.turns]
        every = [(role, [words]) for n in range(4) for role, words in (("user", f"turn {n}"), ("model", f"words {n}"))]
        assert said == [*every, ("user", ["more"])]
        assert [turn.get("task") for turn in task.turns[1::2]] == [image.owner for image in made]
        await succeed(services, task, size=13 * 2**20)
        (task,) = await add_turn(services, conversation, "large", model="nano-banana")
        assert [len(shown(task)), len(shown(task, past=True))] == [1, 2], "the last one may be large"
        await succeed(services, task)
        (task,) = await add_turn(services, conversation, "after it", model="nano-banana")
        assert [len(shown(task)), len(shown(task, past=True))] == [1, 0], "an earlier one may not"
        await succeed(services, task)
        (full,) = await add_turn(services, conversation, "full", *[png()] * 10, model="nano-banana")
        assert (len(shown(full)), full.provider) == (10, "kie"), "no room for the last image"
        (link,) = await services.database.fetch(
            "SELECT count(*) AS n FROM images WHERE kind = 'reference' AND caller <> ''"
        )
        assert link["n"] == 11, "linked images are not counted again"


async def test_words_of_a_model_go_back_to_the_provider_that_made_them_alone(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Another account at the same provider reads its signatures, too; another provider gets the last image."""
    async with still(tmp_path, clock, gemini_keys="key") as services:
        conversation, orders = await begin(services), services.worker.steps.submit.orders
        made = []
        for number in range(2):
            one, other = await add_turn(services, conversation, f"turn {number}", count=2)
            made.append(await succeed(services, one, turn=f"as written {number}", provider="gemini"))
            await fail(services, other)  # the answer is the last image that there is
        (task,) = await add_turn(services, conversation, "blue")
        written = ["as written 0", "as written 1"]
        for provider, keeps_history, contents, blobs in (
            ("gemini", True, written, [image.blob for image in made]),
            ("gemini@0123456789abcdef", True, written, [image.blob for image in made]),
            ("kie", False, [], [made[1].blob]),
        ):
            order = await orders.build_order(replace(task, provider=provider), keeps_history=keeps_history)
            assert [turn.content for turn in order.turns if turn.role == "model"] == contents
            assert [b"".join([chunk async for chunk in one.read()]) for one in order.references] == [
                f"the image of {blob.partition('/')[0]}".encode() for blob in blobs
            ]


async def test_conversation_that_is_deleted_while_an_order_is_written_gets_no_turn(
    tmp_path: Path, clock: ManualClock
) -> None:
    @dataclass(frozen=True)
    class DeletedThen(DyingProcess):
        async def complete(self, caller: str, order: PlannedOrder) -> PlannedOrder:
            completed = await self.turn.complete(caller, order)
            marked = services.tables.conversations.mark_deleted(self.turn.conversation_id, clock.now())
            assert await marked, "its tasks are deleted after that"
            return completed

    async with still(tmp_path, clock) as services:
        turn = await service_of(services).next_turn(HOUSE, await begin(services))
        request = OrderRequest(params=ImageParams(prompt="a fox"), conversation=turn.request_key)
        plan = await services.orders.plan(LOCAL, request)
        with pytest.raises(ApiError, match="no conversation"):
            await services.orders.create(LOCAL, request, plan, DeletedThen(turn))
        assert (await services.database.fetch("SELECT count(*) AS n FROM tasks"))[0]["n"] == 0


async def test_turn_that_was_overtaken_goes_to_a_provider_that_takes_images(tmp_path: Path, clock: ManualClock) -> None:
    """It was planned as the first one, which has nothing to go on from."""

    @dataclass(frozen=True)
    class Overtaken(DyingProcess):
        async def complete(self, caller: str, order: PlannedOrder) -> PlannedOrder:
            completed = await self.turn.complete(caller, order)
            (task,) = await add_turn(services, self.turn.conversation_id, "first")
            await succeed(services, task)
            return completed

    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[models.nano-banana-pro]\nmodel = "painter"\n[models.nano-banana-pro.text-to-image]\n')
    package, nowhere = replace(EXAMPLE, catalog=catalog), "http://127.0.0.1:9"
    values: dict[str, Any] = {"kie_keys": "key", "example_keys": "key", "providers": ("example", "kie")}
    values |= {"api_url": nowhere, "tunnel_api": nowhere, "data_dir": tmp_path / "data"}
    settings = load_settings(env_file=None, extra_providers=(package,), **values)
    async with open_services(settings, clock=clock, extra_providers=(package,)) as services:
        turn = await service_of(services).next_turn(HOUSE, await begin(services))
        request = OrderRequest(params=ImageParams(prompt="second", model="nano-banana-pro"))
        plan = await services.orders.plan(LOCAL, request)
        (task,) = (await services.orders.create(LOCAL, request, plan, Overtaken(turn))).tasks
        assert (task.provider, task.mode) == ("example", "text-to-image")
        await keep(services)
        (task,) = await rows(services, [task])
        assert (task.provider, task.candidates, task.mode) == ("kie", ("kie",), "image-to-image")
        assert len(shown(task)) == 1


async def test_pages_have_everything_once_and_only_of_the_scope(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        service, other = service_of(services), Scope(owner=new_user_id())
        made = []
        for number in range(5):
            made.append(await begin(services, title=f"{number}"))
            clock.advance(1.0)
        await begin(services, owner=other.owner)
        for number in range(5):
            (task,) = await add_turn(services, made[0], f"turn {number}")
            await succeed(services, task)
        found, before = list[str](), None
        while page := await service.list_newest(HOUSE, before=before, limit=2):
            found += [one.id for one in page]
            before = (page[-1].updated_at, page[-1].id)
        assert found == [made[0], *made[:0:-1]], "the last used first"
        numbers, last = list[int](), None
        while turns := await service.list_turns(HOUSE, made[0], before=last, limit=2):
            numbers += [view.turn.number for view in turns]
            last = turns[-1].turn.number
        assert numbers == [5, 4, 3, 2, 1]
        assert len(await service.list_newest(other, before=None, limit=9)) == 1
        for call in (
            service.list_turns(other, made[0], before=None, limit=1),
            service.next_turn(other, made[0]),
            service.change(other, made[0], title="mine"),
            service.delete(other, made[0]),
        ):
            with pytest.raises(ApiError, match="no conversation"):
                await call


async def test_held_turn_has_no_estimate_and_ends_with_the_time_in_the_queue(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with still(tmp_path, clock) as services:
        conversation = await begin(services)
        await add_turn(services, conversation, "first")
        (held,) = await add_turn(services, conversation, "second")
        assert held.is_held
        assert (held.mode, held.references) == ("image-to-image", ())
        assert (await services.eta.estimate(held)).position is None
        clock.advance(DAY + 2)
        await services.worker.poll_once()
        async with asyncio.timeout(5):
            while not (await rows(services, [held]))[0].has_ended:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert (await rows(services, [held]))[0].error_code == "deadline_exceeded"
        await keep(services)
        (last,) = await add_turn(services, conversation, "third")
        assert (last.is_held, last.mode) == (False, "text-to-image"), "it is planned again without an image"


async def test_images_stay_for_later_turns_that_use_them(tmp_path: Path, clock: ManualClock) -> None:
    """The earlier task is deleted, or its conversation idle; files of turns that nobody keeps go as before."""
    async with still(tmp_path, clock) as services:
        conversation, blobs = await begin(services), services.blobs

        async def bytes_of(task: Task) -> list[int]:
            found = list[int]()
            for ref in task.references:
                try:
                    found.append(len([chunk async for chunk in await blobs.open(ref["blob"])]))
                except BlobMissing:
                    found.append(0)
            return found

        (first,) = await add_turn(services, conversation, "first", png("red"))
        image = await succeed(services, first)
        (second,) = await add_turn(services, conversation, "second")
        assert shown(second) == [image.blob]
        recorder: Any = Recorder(services.database)
        assert await Images(recorder).links_to([first.id]) == [(first.id, reference_owner(second.batch))]
        plan = await services.database.fetch(f"EXPLAIN QUERY PLAN {recorder.seen[0]}", v0=f"{first.id}/")
        assert "images_links (caller=? AND kind=? AND <expr>=?)" in plan[0]["detail"], "not all links are read"
        await services.deleter.delete_task(first.id, HOUSE)
        await services.worker.clean_up()
        await services.worker.retention.sweep(older_than=-1.0)
        assert all(await bytes_of(second)), "it is still in the queue, and shows the image to its provider"
        await succeed(services, second)
        await services.pins.pin_task(second.id, HOUSE)
        for _ in range(3):
            clock.advance(2 * DAY)
            await services.worker.clean_up()
        await services.worker.retention.sweep(older_than=-1.0)
        assert await service_of(services).list_newest(HOUSE, before=None, limit=9) == []
        assert all(await bytes_of(second)), "a pinned task keeps its references"
        await services.pins.unpin_task(second.id, HOUSE)
        for _ in range(3):
            clock.advance(DAY)
            await services.worker.clean_up()
        assert await blobs.list_owners(-1.0) == []
        assert await services.database.fetch("SELECT name FROM images") == []


async def test_turn_costs_no_more_than_it_has_reserved_whatever_it_goes_on_from(
    tmp_path: Path, clock: ManualClock
) -> None:
    """Without the image of the turn before, a dearer provider can serve it, too."""
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(
        'unit = "USD"\nusd_per_unit = 1.0\n[models.nano-banana]\nmodel = "painter"\nprices = { 1K = 0.5 }\n'
        "[models.nano-banana.text-to-image]\n"
    )
    package, nowhere = replace(EXAMPLE, catalog=catalog), "http://127.0.0.1:9"
    values: dict[str, Any] = {"kie_keys": "key", "example_keys": "key", "providers": ("example", "kie")}
    values |= {"api_url": nowhere, "tunnel_api": nowhere, "data_dir": tmp_path / "data", "daily_budget": 0.53}
    settings = load_settings(env_file=None, extra_providers=(package,), **values)
    async with open_services(settings, clock=clock, extra_providers=(package,)) as services:

        async def overtake(*, left: int) -> Task:
            """Return a turn whose parent was canceled, with so much left of the budget then."""
            conversation, others = await begin(services), await begin(services)
            (other,) = await add_turn(services, others, "other", model="nano-banana", provider="kie")
            (first,) = await add_turn(services, conversation, "first", model="nano-banana", provider="kie")
            (second,) = await add_turn(services, conversation, "second", model="nano-banana")
            assert (second.is_held, second.candidates) == (True, ("kie",))
            for task in (other, first):
                await services.canceler.cancel_task(task.id, HOUSE)
            state = await services.budget.read_state()
            assert state is not None
            assert state.left_micros == left
            await keep(services)
            (second,) = await rows(services, [second])
            assert (second.is_held, second.mode) == (False, "text-to-image")
            return second

        released = await overtake(left=510_000)
        assert (released.candidates, released.reserved) == (("kie",), 20_000), "it may go where it fits"
        await services.database.execute("UPDATE budget_days SET used = -500000")
        released = await overtake(left=530_000)
        assert (released.candidates, released.reserved) == (("example", "kie"), 500_000)
        conversation = await begin(services)
        (first,) = await add_turn(services, conversation, "first", model="nano-banana", provider="kie")
        (second,) = await add_turn(services, conversation, "second", model="nano-banana")
        await services.database.execute("UPDATE tasks SET reserved = 1 WHERE id = :id", id=second.id)
        await services.canceler.cancel_task(first.id, HOUSE)
        await keep(services)
        (second,) = await rows(services, [second])
        assert (second.state, second.billed) == (TaskState.FAILED, "no"), "prices have changed"
        assert "reserved" in (second.error_detail or "")


async def test_turn_behind_a_canceled_one_waits_for_the_turn_before_that(tmp_path: Path, clock: ManualClock) -> None:
    async with still(tmp_path, clock) as services:
        conversation = await begin(services)
        (first,) = await add_turn(services, conversation, "first")
        (second,) = await add_turn(services, conversation, "second")
        (third,) = await add_turn(services, conversation, "third")
        await services.canceler.cancel_task(second.id, HOUSE)
        for _ in range(2):
            assert await keep(services) == [True]
        (third,) = await rows(services, [third])
        assert third.is_held, "the first one has not ended"
        (fourth,) = await add_turn(services, conversation, "fourth")
        assert fourth.is_held
        image = await succeed(services, first)
        for _ in range(2):
            await keep(services)
        (third,) = await rows(services, [third])
        assert (third.is_held, shown(third)) == (False, [image.blob])
