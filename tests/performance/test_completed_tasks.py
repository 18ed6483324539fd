"""The quick JSON of completed tasks equals the presenter's, and costs one read."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from broker.api.http.responses import data_document, to_json
from broker.api.native.completed_tasks import CompletedTasks
from broker.services import Services
from storage.images import StoredImage
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import a_task, open_api, png, task_cache

pytestmark = pytest.mark.anyio

TEXTS = ("", "a fox", 'quotes " and \\ and \n\t\x00\x1f', "红色的狐狸", "лиса", "\u2028 \x7f \x85", "🦊", "</script>")
MOMENTS = (0.0, 1.0005, 1_700_000_000.9996, 1_764_000_000.123_456_7)
TASKS = 150
MAX_CALLS = 15
"""Of Python functions, from the id to the response with its ETag; one is the test's own."""


def make_task(rng: random.Random, number: int, services: Services) -> Task:
    model = rng.choice(services.catalog.models)
    created_at = rng.choice(MOMENTS)
    ended_at = created_at + rng.random() * 100
    return a_task(
        created_at,
        number=number,
        state=TaskState.SUCCEEDED,
        prompt=rng.choice(TEXTS),
        model=model.name,
        mode=rng.choice(["text-to-image", "image-to-image"]),
        aspect_ratio=rng.choice([None, "1:1", "16:9", "auto"]),
        resolution=rng.choice([None, "1K", "2K", "4K"]),
        params=rng.choice([{}, {"steps": 20}, {"seed": 5, "output_format": "png"}, {"steps": None}]),
        texts=rng.choice([(), (rng.choice(TEXTS),), TEXTS]),
        provider=rng.choice(["kie", "gemini", "kie@0123456789abcdef", "unknown"]),
        attempt=rng.randrange(4),
        cost=rng.choice([None, 4.0, 0.039, 1e-7, 1e22]),
        cost_usd=rng.choice([None, 0.02, 1e-5, 0.1 + 0.2]),
        updated_at=rng.choice([ended_at, ended_at + 7]),
        ended_at=rng.choice([ended_at, ended_at, None]),
        pinned_at=rng.choice([None, None, created_at]),
    )


def make_images(rng: random.Random, task: Task, services: Services) -> list[StoredImage]:
    size = services.catalog.pixel_size(task.model, task.aspect_ratio, task.resolution)
    sizes = [(1024, 1024), (4096, 4096), (70_000, 10), *([(size.width, size.height)] if size else [])]
    images = []
    for position in range(rng.choice([0, 1, 1, 3])):
        width, height = rng.choice(sizes)
        media_type = rng.choice(["image/png", "image/jpeg", "image/webp"])
        images.append(
            StoredImage(
                name=f"generated_{task.id[-41:]}{position:02}.{media_type[6:].replace('jpeg', 'jpg')}",
                owner=task.id,
                kind="result",
                position=position,
                blob=f"{task.id}/{position}",
                media_type=media_type,
                size=rng.randrange(10**7),
                width=width,
                height=height,
                sha256=f"{rng.getrandbits(256):064x}",
                created_at=task.created_at,
            )
        )
    return images


async def test_quick_json_is_the_presenters(tmp_path: Path) -> None:
    rng = random.Random(14)
    async with open_api(tmp_path) as broker:
        services = broker.services
        completed = CompletedTasks(database=services.database, presenter=services.presenter)
        made: list[tuple[Task, list[StoredImage]]] = []
        for number in range(TASKS):
            task = make_task(rng, number + 1, services)
            made.append((task, make_images(rng, task, services)))
        rng.shuffle(made)
        tables: Any = services.tables
        inserts = [tables.tasks.insert_task(task) for task, _ in made]
        inserts += [tables.images.insert_image(image) for _, images in made for image in images[::-1]]
        await services.database.transact(*inserts)
        for task, images in made:
            loaded = completed.load(task.id)
            assert loaded is not None
            expected = to_json(data_document(services.presenter.task(task, images, "en")))
            assert loaded.response.body == expected
            assert loaded.version == task.version


async def test_other_tasks_are_left_to_the_presenter(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        services = broker.services
        completed = CompletedTasks(database=services.database, presenter=services.presenter)
        for number, state in enumerate(TaskState):
            task = await broker.add_task(number=number + 1, state=state, ended_at=services.clock.now())
            assert (completed.load(task.id) is not None) is (state == TaskState.SUCCEEDED)
        assert completed.load("task_" + "f" * 43) is None
        assert completed.load("' OR 1=1 --") is None


async def test_poll_of_a_completed_task_reads_once_and_the_third_one_nothing(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
        broker.listeners.reads_of(task.id)
        for reads in (1, 1, 0, 0):
            assert (await broker.client.get(f"/api/task/{task.id}")).status_code == 200
            assert broker.listeners.reads_of(task.id) == reads


async def test_completed_task_is_read_and_rendered_in_few_calls(tmp_path: Path) -> None:
    """What tasks of the same parameters share is in memory: the first reading has written it."""
    async with open_api(tmp_path) as broker:
        completed = task_cache(broker.services).completed
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
        await broker.add_image(task.id, png())
        assert completed.load(task.id) is not None
        calls: list[str] = []
        sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
        try:
            loaded = completed.load(task.id)
        finally:
            sys.setprofile(None)
        assert loaded is not None
        assert len(calls) <= MAX_CALLS, calls


async def test_task_that_has_not_completed_is_read_once_for_its_json(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        cache = task_cache(broker.services)
        task = await broker.add_task()
        broker.listeners.reads_of(task.id)
        for reads in (1, 0, 0):
            assert cache.find_or_load(task.id, "en") is None
            assert broker.listeners.reads_of(task.id) == reads
        await broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
        assert cache.find_or_load(task.id, "en") is not None


async def test_polls_of_many_completed_tasks_push_out_no_active_one(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        cache = task_cache(broker.services, max_bytes=3_000)
        active = await broker.add_task()
        kept = await cache.response(active.id, "en")
        for number in range(10, 20):
            ended_at = broker.services.clock.now()
            task = await broker.add_task(number=number, state=TaskState.SUCCEEDED, ended_at=ended_at)
            await cache.response(task.id, "en")
        assert cache.find(active.id, "en") is kept
