"""Thumbnails over HTTP: made once, replaced by the image when they fail, and deleted with it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from PIL import Image

from broker.thumbnails import RETRY_AFTER_SECONDS, Thumbnails
from storage.blobs.local import LocalBlobs
from storage.blobs.staging import Draft
from storage.blobs.store import BlobStore
from storage.errors import StorageError
from storage.images import StoredImage
from storage.states import TaskState
from storage.tasks import Task
from tests.support.api import ApiBroker, open_api
from tests.support.clock import ManualClock
from tests.support.samples import encoded, picture
from tests.support.servers.postgres import Postgres
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.anyio

WIDTH, HEIGHT = 900, 600
DATA = encoded("PNG", picture(90, 60).resize((WIDTH, HEIGHT)))
FORWARDED = {"X-Forwarded-For": "8.8.8.8"}


async def shown(broker: ApiBroker, number: int = 1, data: bytes = DATA, **changes: Any) -> StoredImage:
    """Return the result of a succeeded task."""
    task = await broker.add_task(number=number, state=TaskState.SUCCEEDED, ended_at=broker.services.clock.now())
    name = f"generated_{number:043x}.png"
    return await broker.add_image(task.id, data, **{"name": name, "width": WIDTH, "height": HEIGHT, **changes})


async def referred(broker: ApiBroker, number: int = 1) -> StoredImage:
    task = await broker.add_task(number=number, batch=f"batch_{number:043x}")
    owner = task.id.replace("task_", "refs_")
    return await broker.add_image(owner, DATA, kind="reference", width=WIDTH, height=HEIGHT)


def path_of(image: StoredImage) -> str:
    return f"/uploads/{'references' if image.kind == 'reference' else 'images'}/{image.name}"


async def small(
    broker: ApiBroker, image: StoredImage, size: int = 512, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await broker.client.get(f"{path_of(image)}?size={size}", headers=headers)


def is_small(answer: httpx.Response, longest: int = 512) -> bool:
    assert answer.status_code == 200
    if answer.headers["content-type"] != "image/webp":
        return False
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.format == "WEBP"
        return max(image.size) == longest


async def rows(broker: ApiBroker) -> list[str]:
    found = await broker.services.database.fetch("SELECT kind FROM images ORDER BY kind")
    return [row["kind"] for row in found]


def outcomes(broker: ApiBroker) -> dict[str, float]:
    samples = next(iter(broker.services.metrics.thumbnails.collect())).samples
    return {s.labels["outcome"]: s.value for s in samples if s.name.endswith("_total")}


def files(broker: ApiBroker) -> int:
    return sum(path.is_file() for path in (broker.folder / "blobs").rglob("*"))


def with_parts(broker: ApiBroker, **parts: Any) -> Thumbnails:
    """Replace the thumbnails of the broker by some with other parts or limits."""
    now = broker.services.thumbnails
    kept = {name: getattr(now, name) for name in ("clock", "tasks", "images", "blobs", "metrics")}
    broker.mount(thumbnails=Thumbnails(**{**kept, **parts}))
    return broker.services.thumbnails


# -- what is served


async def test_thumbnail_is_served_like_an_image(tmp_path: Path) -> None:
    """With its own type and tag, all security headers, and readable by name without access rights."""
    async with open_api(tmp_path, retention_hours=2) as broker:
        image = await shown(broker)
        answer = await small(broker, image, headers=FORWARDED)
        assert is_small(answer)
        tag = answer.headers["etag"]
        assert tag != f'"{image.sha256}"'
        assert answer.headers["content-length"] == str(len(answer.content))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
        assert answer.headers["cache-control"].startswith("private, max-age=7")
        assert answer.headers["content-disposition"].endswith('.webp"')
        assert (await small(broker, image, headers={"If-None-Match": tag})).status_code == 304
        assert (await small(broker, image, headers={"If-None-Match": f'"{image.sha256}"'})).status_code == 200
        part = await small(broker, image, headers={"Range": "bytes=0-3"})
        assert (part.status_code, part.content) == (206, b"RIFF")
        head = await broker.client.head(f"{path_of(image)}?size=512")
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)
        assert (await broker.client.get(path_of(image))).content == DATA


async def test_thumbnail_is_not_cached_beyond_the_retention_of_its_image(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker, created_at=1.0)
        assert (await small(broker, image)).headers["cache-control"] == "private, no-cache"


async def test_only_four_sizes_are_made(tmp_path: Path) -> None:
    """Any requested size is served, and no thumbnail is larger than the image."""
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        for requested, longest in [(1, 128), (128, 128), (129, 256), (512, 512), (513, 900), (999_999, 900)]:
            assert is_small(await small(broker, image, requested), longest)
        assert await rows(broker) == ["result", "thumbnail-1024", "thumbnail-128", "thumbnail-256", "thumbnail-512"]


@pytest.mark.parametrize("requested", ["0", "-1", "x", "512px", "5.0", "1234567", "٥١٢", "%00", "512%20", "1e3"])
async def test_invalid_size_is_rejected_with_the_cure(tmp_path: Path, requested: str) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        answer = await broker.client.get(f"{path_of(image)}?size={requested}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert (answer.json()["field"], "128, 256, 512, 1024" in answer.json()["error"]) == ("size", True)
        assert (await broker.client.get(f"{path_of(image)}?size=")).content == DATA


async def test_task_document_links_the_thumbnail(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        huge = await shown(broker, 2, b"never looked at", width=30_000, height=30_000)
        data = (await broker.client.get(f"/api/task/{image.owner}")).json()["data"]
        assert is_small(await broker.client.get(data["results"][0]["thumbnail"]))
        data = (await broker.client.get(f"/api/task/{huge.owner}")).json()["data"]
        assert data["results"][0]["thumbnail"] is None
        assert (await small(broker, huge)).content == b"never looked at"
        assert outcomes(broker) == {"made": 1}


async def test_internal_name_of_a_thumbnail_is_not_found(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        await small(broker, image)
        row = await broker.services.tables.images.get_at(image.owner, "thumbnail-512", 0)
        assert row is not None
        for folder in ("images", "references"):
            assert (await broker.client.get(f"/uploads/{folder}/{row.name}")).status_code == 404


async def test_references_have_them_too(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await referred(broker)
        assert is_small(await small(broker, image))
        assert await rows(broker) == ["reference", "thumbnail-512"]


# -- made once


async def test_hundred_concurrent_requests_make_one_thumbnail(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        answers = await asyncio.gather(*(small(broker, image) for _ in range(100)))
        assert all(is_small(answer) for answer in answers)
        assert len({answer.content for answer in answers}) == 1
        assert outcomes(broker) == {"made": 1}
        assert (await rows(broker), files(broker)) == (["result", "thumbnail-512"], 2)
        await small(broker, image)
        assert outcomes(broker) == {"made": 1}, "nor later"


Place = dict[str, Any]


@pytest.fixture(params=["sqlite and files", "postgres and a bucket"])
async def place(request: pytest.FixtureRequest) -> Place:
    """Settings of the database and the blob store."""
    if request.param == "sqlite and files":
        return {}
    postgres: Postgres = request.getfixturevalue("postgres")
    server: S3Server = request.getfixturevalue("s3_server")
    return {"database_url": await postgres.fresh(), **bucket(server)}


def bucket(server: S3Server) -> Place:
    return {
        "blob_url": f"s3://{server.new_bucket()}/images",
        "s3_endpoint": server.url,
        "s3_access_key": "test",
        "s3_secret_key": "test",
    }


async def test_two_processes_making_one_thumbnail_keep_one_row(tmp_path: Path, place: Place) -> None:
    """The second finds the row of the first, and serves that."""
    async with open_api(tmp_path, **place) as broker:
        for number in range(1, 11):
            image = await shown(broker, number)
            one, other = with_parts(broker), with_parts(broker)
            made = await asyncio.gather(one.find_or_make(image, 512), other.find_or_make(image, 512))
            assert made[0] is not None
            assert made[0] == made[1]
        assert outcomes(broker) == {"made": 20}
        assert await rows(broker) == ["result"] * 10 + ["thumbnail-512"] * 10
        assert is_small(await small(broker, image))


# -- failures serve the image itself


@pytest.mark.parametrize("damage", ["no image at all", "changed on the disk", "cut off"])
async def test_a_damaged_image_is_served_as_it_is_and_tried_once(tmp_path: Path, damage: str) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker, data=b"no image, but text" if damage == "no image at all" else DATA)
        (path,) = (broker.folder / "blobs").rglob(image.blob.replace("/", "."))
        if damage == "changed on the disk":
            path.write_bytes(DATA[:-30] + b"x" + DATA[-29:])
        elif damage == "cut off":
            path.write_bytes(DATA[: len(DATA) // 2])
        answer = await small(broker, image, headers={"Range": "bytes=0-7"})
        assert (answer.status_code, answer.headers["cache-control"]) == (206, "private, no-cache")
        assert answer.content == (await broker.client.get(path_of(image), headers={"Range": "bytes=0-7"})).content
        await small(broker, image, headers={"Range": "bytes=0-7"})
        assert (outcomes(broker), await rows(broker)) == ({"unshrinkable": 1}, ["result"])


async def test_deleted_image_is_not_found(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        await broker.services.blobs.delete(image.owner)
        assert (await small(broker, image)).status_code == 404


async def test_on_a_full_disk_the_image_is_served(tmp_path: Path) -> None:
    """And the thumbnail later, when there is room."""
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        with_parts(broker, blobs=LocalBlobs(broker.folder / "blobs", free_floor=2**60))
        answer = await small(broker, image)
        assert (answer.content, answer.headers["cache-control"]) == (DATA, "private, no-cache")
        assert outcomes(broker) == {"no_store": 1}
        with_parts(broker, blobs=LocalBlobs(broker.folder / "blobs"))
        assert is_small(await small(broker, image, headers={"If-None-Match": answer.headers["etag"]}))


@dataclass
class Held:
    """Blob store whose readers wait until released."""

    blobs: BlobStore

    def __post_init__(self) -> None:
        self.opening, self.open_now = asyncio.Event(), asyncio.Event()
        self.opened, self.readers = 0, asyncio.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.blobs, name)

    async def open(self, name: str) -> Any:
        self.opened += 1
        self.readers.release()
        self.opening.set()
        await self.open_now.wait()
        return await self.blobs.open(name)


async def test_requests_above_the_limit_get_the_image_at_once(tmp_path: Path) -> None:
    """Two thumbnails are made at a time."""
    async with open_api(tmp_path) as broker:
        images = [await shown(broker, number) for number in range(10)]
        held = Held(broker.services.blobs)
        thumbnails = with_parts(broker, blobs=held, max_waiting=3)
        requests = [asyncio.create_task(thumbnails.find_or_make(image, 512)) for image in images]
        waiting = set(requests)
        while len(waiting) > 3:
            rejected, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert {request.result() for request in rejected} == {None}
        for _ in range(2):
            await held.readers.acquire()
        assert (held.opened, outcomes(broker)) == (2, {"crowded": 7})
        answer = await small(broker, images[3])
        assert (answer.content, answer.headers["cache-control"]) == (DATA, "private, no-cache")
        held.open_now.set()
        assert None not in await asyncio.gather(*waiting)
        assert is_small(await small(broker, images[3]))


async def test_waiting_ends_but_the_thumbnail_is_finished(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        held = Held(broker.services.blobs)
        thumbnails = with_parts(broker, blobs=held, wait_seconds=0)
        assert (await small(broker, image)).content == DATA
        held.open_now.set()
        thumbnails.wait_seconds = 10
        assert await thumbnails.find_or_make(image, 512) is not None
        assert held.opened == 1


async def test_disconnecting_client_does_not_cancel_the_thumbnail_of_others(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        held = Held(broker.services.blobs)
        thumbnails = with_parts(broker, blobs=held)
        first = asyncio.create_task(thumbnails.find_or_make(image, 512))
        second = asyncio.create_task(thumbnails.find_or_make(image, 512))
        await held.opening.wait()
        first.cancel()
        held.open_now.set()
        assert await second is not None
        assert held.opened == 1


async def test_closing_cancels_running_thumbnails(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        held = Held(broker.services.blobs)
        thumbnails = with_parts(broker, blobs=held)
        request = asyncio.create_task(thumbnails.find_or_make(image, 512))
        await held.opening.wait()
        await thumbnails.aclose()
        assert await request is None
        assert await thumbnails.find_or_make(image, 512) is None
        assert files(broker) == 1, "and leaves no draft behind"


async def test_broker_closes_thumbnails_at_shutdown(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        thumbnails = broker.services.thumbnails
        held = Held(broker.services.blobs)
        thumbnails.blobs = cast(BlobStore, held)
        running = asyncio.create_task(thumbnails.find_or_make(image, 512))
        await held.opening.wait()
    assert await running is None


class _FailingOnce:
    """Blob store whose first read fails."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.tries = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    async def open(self, name: str) -> Any:
        self.tries += 1
        if self.tries == 1:
            raise StorageError("503")
        return await self._blobs.open(name)


async def test_unavailable_store_is_tried_again_after_a_pause(tmp_path: Path, clock: ManualClock) -> None:
    """Until then the image itself is served at once: an attempt may cost a whole decode."""
    async with open_api(tmp_path) as broker:
        image, other = await shown(broker), await shown(broker, 2)
        store = _FailingOnce(broker.services.blobs)
        with_parts(broker, blobs=store, clock=clock)
        thumbnails = broker.services.thumbnails
        assert await thumbnails.find_or_make(image, 512) is None
        clock.advance(RETRY_AFTER_SECONDS - 1)
        assert await thumbnails.find_or_make(image, 512) is None
        assert (store.tries, outcomes(broker)) == (1, {"no_store": 1})
        assert await thumbnails.find_or_make(other, 512) is not None, "another image is not affected"
        clock.advance(1)
        assert is_small(await small(broker, image))


class _Unreadable:
    """Local file whose reading fails with the given error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def open(self, _mode: str) -> Any:
        return self

    def __enter__(self) -> _Unreadable:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def seek(self, _at: int) -> int:
        raise self._error


class _UnreadableDrafts:
    """A blob store whose local copies cannot be read."""

    def __init__(self, blobs: BlobStore, error: Exception) -> None:
        self._blobs, self._error = blobs, error
        self.copies = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    @asynccontextmanager
    async def new_draft(self, owner: str) -> AsyncIterator[Any]:
        self.copies += 1
        async with self._blobs.new_draft(owner) as draft:
            yield _UnreadableDraft(draft, _Unreadable(self._error))


class _UnreadableDraft:
    def __init__(self, draft: Draft, path: _Unreadable) -> None:
        self._draft = draft
        self.path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")], ids=["memory", "disk"])
async def test_temporary_error_is_tried_again_after_a_pause(
    tmp_path: Path, clock: ManualClock, error: Exception
) -> None:
    """A sound image does not lose its thumbnail for the life of the process; nor is it tried at each request."""
    async with open_api(tmp_path) as broker:
        image = await shown(broker)
        blobs = broker.services.blobs
        store = _UnreadableDrafts(blobs, error)
        thumbnails = with_parts(broker, blobs=store, clock=clock)
        assert (await small(broker, image)).content == DATA
        assert (await small(broker, image)).content == DATA
        assert (store.copies, outcomes(broker)) == (1, {"no_store": 1})
        thumbnails.blobs = blobs
        clock.advance(RETRY_AFTER_SECONDS)
        assert is_small(await small(broker, image))


async def test_number_of_remembered_failures_is_limited(tmp_path: Path, clock: ManualClock) -> None:
    async with open_api(tmp_path) as broker:
        images = [await shown(broker, number) for number in range(3)]
        store = _UnreadableDrafts(broker.services.blobs, MemoryError())
        thumbnails = with_parts(broker, blobs=store, clock=clock, max_remembered_failures=2)
        for image in (*images, images[2]):
            assert await thumbnails.find_or_make(image, 512) is None
        assert store.copies == 3, "the last failure is remembered"
        assert await thumbnails.find_or_make(images[0], 512) is None
        assert store.copies == 4, "the first one is not"


# -- retention


async def retire(broker: ApiBroker, task: Task, state: TaskState) -> None:
    """Run the retention step of an ended task while the worker of the broker is paused."""
    broker.services.worker.clock_guard.pause_deletion()
    now = broker.services.clock.now()
    await broker.services.database.execute(
        "UPDATE tasks SET leased_by = 'test', ended_at = 1.0, due_at = :now WHERE id = :id", id=task.id, now=now
    )
    fresh = await broker.services.tables.tasks.get(task.id)
    assert fresh is not None
    assert fresh.state == state
    await broker.services.worker.retention.run([fresh])


async def task_of(broker: ApiBroker, task_id: str) -> Task:
    task = await broker.services.tables.tasks.get(task_id)
    assert task is not None
    return task


async def stored(broker: ApiBroker) -> int:
    """Return the number of owners of stored bytes."""
    return len(await broker.services.blobs.list_owners(-60.0))


async def test_retention_deletes_thumbnails(tmp_path: Path, place: Place) -> None:
    async with open_api(tmp_path, **place) as broker:
        for image in (await shown(broker, 1), await referred(broker, 2)):
            await small(broker, image, 128)
            await small(broker, image, 512)
            task = await task_of(broker, image.owner.replace("refs_", "task_"))
            await broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=1.0)
            assert await broker.services.worker.retention.find_strays([image.owner]) == []
            await retire(broker, task, TaskState.SUCCEEDED)
            await retire(broker, task, TaskState.EXPIRED)
            assert await broker.services.tables.images.owners_with_images([image.owner]) == set()
            assert (await small(broker, image)).status_code == 404
        assert (await rows(broker), await stored(broker)) == ([], 0)


class Interrupted:
    """Blob store that runs a callback before a draft is committed."""

    def __init__(self, blobs: BlobStore, action: Any) -> None:
        self._blobs = blobs
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    @asynccontextmanager
    async def new_draft(self, owner: str) -> AsyncIterator[Any]:
        async with self._blobs.new_draft(owner) as draft:
            yield _InterruptedDraft(draft, self._action)


class _InterruptedDraft:
    def __init__(self, draft: Draft, action: Any) -> None:
        self._draft = draft
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._draft, name)

    async def commit(self, media_type: str) -> Any:
        await self._action()
        return await self._draft.commit(media_type)


async def test_image_deleted_during_the_making_gets_no_thumbnail(tmp_path: Path, place: Place) -> None:
    """A row inserted after retention would never be deleted; bytes without a row are swept."""
    async with open_api(tmp_path, **place) as broker:
        for image in (await shown(broker, 1), await referred(broker, 2)):
            task = await task_of(broker, image.owner.replace("refs_", "task_"))
            await broker.change_task(task, state=TaskState.SUCCEEDED, ended_at=1.0)

            async def delete(task: Task = task) -> None:
                await retire(broker, task, TaskState.SUCCEEDED)
                await retire(broker, task, TaskState.EXPIRED)

            thumbnails = with_parts(broker, blobs=Interrupted(broker.services.blobs, delete))
            assert await thumbnails.find_or_make(image, 512) is None
            assert await broker.services.worker.retention.find_strays([image.owner]) == [image.owner]
        assert (await rows(broker), outcomes(broker)) == ([], {"too_late": 2})


async def test_inserting_a_thumbnail_and_retention_exclude_each_other(tmp_path: Path, place: Place) -> None:
    """Concurrent transactions leave no row of an expired task."""
    async with open_api(tmp_path, **place) as broker:
        services = broker.services
        images = [await shown(broker, number) for number in range(30)]

        async def write(image: StoredImage) -> None:
            row = replace(image, name=f"thumbnail_{image.name}", kind="thumbnail-512")
            await asyncio.gather(
                services.database.transact(
                    services.tables.tasks.lock_owner(image.owner), services.tables.images.insert_image(row)
                ),
                retire(broker, await task_of(broker, image.owner), TaskState.SUCCEEDED),
                return_exceptions=True,
            )

        await asyncio.gather(*(write(image) for image in images))
        assert await rows(broker) == []


# -- presigned links


async def test_thumbnail_is_never_served_by_link(tmp_path: Path, s3_server: S3Server) -> None:
    """It is small, and a link would contain the id of the task."""
    async with open_api(tmp_path, **bucket(s3_server), blob_links="presigned") as broker:
        image = await shown(broker)
        assert (await broker.client.get(path_of(image))).status_code == 307
        assert is_small(await small(broker, image))
