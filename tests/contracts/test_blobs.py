"""Contract of a blob store (storage/blobs/store.py), run on every implementation."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from storage.blobs.staging import Blob
from storage.blobs.store import BlobMissing, BlobStore
from storage.ids import new_task_id
from tests.contracts.blob_stores import STORES

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left_open")]

MIB = 2**20
INVALID_OWNERS = ["", ".", "..", "../x", "a/b", "/etc", "a b", "a\0", "a\n", "ä", "a-b", "x" * 81, "a.b", "\\", "~"]


@pytest.fixture(params=STORES)
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    async with STORES[request.param](tmp_path, request) as store:
        yield store


async def keep(blobs: BlobStore, owner: str, data: bytes) -> Blob:
    async with blobs.new_draft(owner) as draft:
        for start in range(0, len(data), 300_000):
            await draft.write(data[start : start + 300_000])
        return await draft.commit()


async def read(blobs: BlobStore, name: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in await blobs.open(name, start, stop)])


async def exists(blobs: BlobStore, name: str) -> bool:
    try:
        async with aclosing(await blobs.open(name)):
            return True
    except BlobMissing:
        return False


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 17])
async def test_stored_bytes_are_read_back(blobs: BlobStore, size: int) -> None:
    data = os.urandom(size)
    blob = await keep(blobs, "task_1", data)
    sha256 = hashlib.sha256(data).hexdigest()
    assert blob == Blob(name=f"task_1/{sha256}", size=size, sha256=sha256)
    assert await read(blobs, blob.name) == data


async def test_equal_bytes_stored_twice_are_one_blob(blobs: BlobStore) -> None:
    """A repeated download after a crash must not cost space, nor change what readers see."""
    first = await keep(blobs, "task_1", b"equal")
    assert await keep(blobs, "task_1", b"equal") == first
    assert await read(blobs, first.name) == b"equal"
    assert await blobs.delete("task_1") == 1


async def test_equal_bytes_stored_concurrently_are_one_blob(blobs: BlobStore) -> None:
    kept = await asyncio.gather(*(keep(blobs, "task_1", b"equal" * 100_000) for _ in range(20)))
    assert len(set(kept)) == 1
    assert await blobs.delete("task_1") == 1


async def test_delete_affects_one_owner(blobs: BlobStore) -> None:
    """Also with owners that share a beginning or an end."""
    kept = [await keep(blobs, owner, b"equal") for owner in ("a", "a_1", "b_1", "1", "A_1")]
    assert await blobs.delete("a_1") == 1
    assert [await exists(blobs, blob.name) for blob in kept] == [True, False, True, True, True]


@pytest.mark.parametrize("owner", INVALID_OWNERS)
async def test_owner_with_other_characters_is_rejected(blobs: BlobStore, owner: str) -> None:
    """Paths are built from valid owners only."""
    with pytest.raises(ValueError, match="owner"):
        blobs.new_draft(owner)
    with pytest.raises(ValueError, match="owner"):
        await blobs.delete(owner)
    with pytest.raises(BlobMissing):
        await blobs.open(f"{owner}/{'0' * 64}")


@pytest.mark.parametrize(
    "name",
    ["", "/", "task_1", "task_1/", "task_1/x", f"task_1/{'A' * 64}", f"task_1/{'0' * 64}\n", f"task_1/{'0' * 65}"],
)
async def test_invalid_name_is_missing(blobs: BlobStore, name: str) -> None:
    with pytest.raises(BlobMissing):
        await blobs.open(name)


async def test_open_of_a_missing_blob_raises_before_the_first_chunk(blobs: BlobStore) -> None:
    """An HTTP response must know it before its headers are sent."""
    with pytest.raises(BlobMissing):
        await blobs.open(f"task_1/{'0' * 64}")
    blob = await keep(blobs, "task_1", b"x")
    with pytest.raises(BlobMissing):
        await blobs.open(f"task_1/{'0' * 64}")
    with pytest.raises(BlobMissing):
        await blobs.open(blob.name.replace("task_1", "task_2"))


async def test_draft_is_not_visible_before_commit(blobs: BlobStore) -> None:
    name = f"task_1/{hashlib.sha256(b'x').hexdigest()}"
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x")
        assert not await exists(blobs, name)
        await draft.commit()
        assert await exists(blobs, name)
    assert await exists(blobs, name)


async def test_media_type_does_not_change_the_name(blobs: BlobStore) -> None:
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x")
        typed = await draft.commit("image/png")
    assert await keep(blobs, "task_1", b"x") == typed
    assert await read(blobs, typed.name) == b"x"


async def test_links_are_off_by_default(blobs: BlobStore) -> None:
    """A link works for anyone who has it."""
    assert await blobs.get_link((await keep(blobs, "task_1", b"x")).name, 60) is None


async def test_path_of_a_blob_is_plain_and_below_the_folder(blobs: BlobStore) -> None:
    """For a server that sends files of the folder; a bucket has none."""
    for owner in ("task_1", "A" * 80, new_task_id(1.8e9)):
        path = blobs.path_below_root((await keep(blobs, owner, b"x")).name)
        assert path is None or re.fullmatch(r"[A-Za-z0-9_]+/[A-Za-z0-9_]+/[A-Za-z0-9_]+\.[0-9a-f]{64}", path)


async def test_bytes_in_memory_are_stored_after_their_check(blobs: BlobStore) -> None:
    checked: list[int] = []
    blob = await blobs.new_draft("task_1").store(b"x" * 10, lambda: checked.append(threading.get_ident()), "image/png")
    assert blob == await keep(blobs, "task_1", b"x" * 10)
    assert await read(blobs, blob.name) == b"x" * 10
    assert checked != [threading.get_ident()]


async def test_bytes_that_fail_their_check_are_not_stored(blobs: BlobStore) -> None:
    def check() -> None:
        raise RuntimeError("no image")

    with pytest.raises(RuntimeError, match="no image"):
        await blobs.new_draft("task_1").store(b"x", check)
    assert await blobs.delete("task_1") == 0


async def test_draft_without_commit_leaves_nothing(blobs: BlobStore) -> None:
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x")
        path = draft.path
    assert not path.exists()
    assert await blobs.delete("task_1") == 0


async def test_draft_left_by_an_error_leaves_nothing(blobs: BlobStore) -> None:
    with pytest.raises(RuntimeError, match="decoder"):
        async with blobs.new_draft("task_1") as draft:
            await draft.write(b"x")
            path = draft.path
            raise RuntimeError("decoder")
    assert not path.exists()
    assert await blobs.delete("task_1") == 0


async def test_draft_file_has_all_bytes_written_so_far(blobs: BlobStore) -> None:
    """A decoder reads them before they are committed."""
    async with blobs.new_draft("task_1") as draft:
        for size in (1, 70_000, 2 * MIB):
            before = draft.size
            await draft.write(b"x" * size)
            assert draft.size == before + size
            assert draft.path.read_bytes() == b"x" * draft.size


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        *[(0, None), (0, 0), (0, 1), (5, 6), (5, 5), (6, 5), (0, 10**12), (10**12, None)],
        *[(MIB - 1, MIB + 1), (3, 2 * MIB + 8), (2 * MIB, None), (2 * MIB + 10, None)],
    ],
)
async def test_range_is_limited_to_the_blob(blobs: BlobStore, start: int, stop: int | None) -> None:
    data = os.urandom(2 * MIB + 10)
    blob = await keep(blobs, "task_1", data)
    assert await read(blobs, blob.name, start, stop) == data[start:stop]


async def test_negative_start_is_rejected(blobs: BlobStore) -> None:
    blob = await keep(blobs, "task_1", b"x")
    with pytest.raises(ValueError, match="start"):
        await blobs.open(blob.name, -1)


async def test_chunks_are_at_most_one_mebibyte(blobs: BlobStore) -> None:
    blob = await keep(blobs, "task_1", b"x" * (5 * MIB + 1))
    sizes = [len(chunk) async for chunk in await blobs.open(blob.name)]
    assert max(sizes) <= MIB
    assert min(sizes) > 0


async def test_open_reader_survives_a_delete(blobs: BlobStore) -> None:
    """Retention may delete an image during its download."""
    data = os.urandom(3 * MIB)
    blob = await keep(blobs, "task_1", data)
    reading, late = await blobs.open(blob.name), await blobs.open(blob.name)
    first = await anext(aiter(reading))
    assert await blobs.delete("task_1") == 1
    assert first + b"".join([chunk async for chunk in reading]) == data
    assert b"".join([chunk async for chunk in late]) == data  # opened, nothing read yet
    assert not await exists(blobs, blob.name)


async def test_reader_may_be_closed_at_any_time(blobs: BlobStore) -> None:
    blob = await keep(blobs, "task_1", b"x" * (3 * MIB))
    for chunks in range(4):
        reading = await blobs.open(blob.name)
        for _ in range(chunks):
            await anext(aiter(reading))
        await reading.aclose()
        await reading.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(reading))


async def test_delete_returns_the_count_and_may_be_repeated(blobs: BlobStore) -> None:
    for number in range(5):
        await keep(blobs, "task_1", bytes([number]))
    assert await blobs.delete("task_1") == 5
    assert await blobs.delete("task_1") == 0
    assert await blobs.delete("missing") == 0
    assert await read(blobs, (await keep(blobs, "task_1", b"again")).name) == b"again"


async def test_concurrent_commits_and_deletes_are_safe(blobs: BlobStore) -> None:
    """Each blob is whole or gone, and no call fails."""

    async def write(number: int) -> Blob:
        return await keep(blobs, "task_1", b"%d" % number)

    async def delete() -> None:
        while not writing.done():
            await blobs.delete("task_1")

    writing = asyncio.gather(*(write(number) for number in range(100)))
    await asyncio.gather(delete(), delete(), delete())
    kept = await writing
    left = [(number, blob.name) for number, blob in enumerate(kept) if await exists(blobs, blob.name)]
    for number, name in left:
        assert await read(blobs, name) == b"%d" % number
    assert await blobs.delete("task_1") == len(left)


async def test_drafts_in_use_are_not_stale(blobs: BlobStore) -> None:
    blob = await keep(blobs, "task_1", b"kept")
    assert await blobs.delete_stale_drafts(3600) == 0
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"slow")
        assert await blobs.delete_stale_drafts(3600) == 0
        slow = await draft.commit()
    assert await read(blobs, blob.name) + await read(blobs, slow.name) == b"keptslow"


async def test_owners_are_listed_by_age(blobs: BlobStore) -> None:
    await keep(blobs, "task_1", b"one")
    await keep(blobs, "refs_2", b"two")
    assert sorted(await blobs.list_owners(0)) == ["refs_2", "task_1"]
    assert await blobs.list_owners(3600) == []
    assert await blobs.list_owners(0, since=time.time() + 60) == []
    await blobs.delete("task_1")
    assert await blobs.list_owners(0) == ["refs_2"]


async def test_check_of_a_healthy_store_passes(blobs: BlobStore) -> None:
    await blobs.check()
    assert await blobs.delete_stale_drafts(0) == 0


async def test_memory_does_not_grow_with_the_blob(blobs: BlobStore) -> None:
    chunk = os.urandom(256 * 1024)
    tracemalloc.start()
    try:
        async with blobs.new_draft("task_1") as draft:
            for _ in range(256):
                await draft.write(chunk)
            blob = await draft.commit()
        total = sum([len(piece) async for piece in await blobs.open(blob.name)])
        assert total == blob.size == 64 * MIB
        # 2 MiB on a quiet machine; on a busy one each thread of the pool may still hold the chunk that it has read
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()
