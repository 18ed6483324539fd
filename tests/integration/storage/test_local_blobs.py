"""Faults of the file store: full and failing disks, power cuts, dead writers, links."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.blobs.folders import MAX_OPEN_FOLDERS, BlobFolders, place_of
from storage.blobs.local import LocalBlobs
from storage.blobs.staging import HashingFile
from storage.blobs.store import BlobMissing
from storage.errors import StorageError, StorageFull
from storage.file_modes import PRIVATE_UMASK
from storage.ids import new_id, reference_owner
from tests.support.process import until

pytestmark = pytest.mark.anyio

MOMENT = "0190ab12345"
TIMED = [f"task_{MOMENT}{number:032x}" for number in range(3)]
"""Owners of the same millisecond, which share a folder."""
OWNERS = pytest.mark.parametrize("owner", ["task_1", TIMED[0]])


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if not path.is_dir())


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


IMPORTS = """
import asyncio, os, resource, sys
from pathlib import Path
from storage.blobs.store import BlobMissing
from storage.errors import StorageError, StorageFull
from storage.blobs.local import LocalBlobs
"""


def run(code: str, root: Path) -> str:
    """Run code in a process of its own, which may exceed its limits, or die."""
    script = IMPORTS + code
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(root)], capture_output=True, text=True, timeout=60, check=True
    )
    return result.stdout


# -- a full or broken disk


WRITE_TOO_MUCH = """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
async def main():
    blobs = LocalBlobs(Path(sys.argv[1]))
    try:
        async with blobs.new_draft("task_1") as draft:
            for _ in range(10):
                await draft.write(b"x" * 30_000)
    except StorageFull as error:
        print(error)
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"fits")
        print((await draft.commit()).size)
asyncio.run(main())
"""


def test_full_disk_is_an_error_that_leaves_nothing_and_passes(tmp_path: Path) -> None:
    """The limit is a real one, in the middle of a write."""
    message, size = run(WRITE_TOO_MUCH, tmp_path).splitlines()
    assert "BROKER_RETENTION_HOURS" in message
    assert size == "4"
    assert [path.stat().st_size for path in files(tmp_path)] == [4]


OPEN_TOO_MUCH = """
async def main():
    blobs = LocalBlobs(Path(sys.argv[1]))
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x")
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 100))
        for call in (draft.commit, blobs.check, lambda: blobs.open("task_1/" + "0" * 64)):
            try:
                await call()
            except (StorageError, BlobMissing) as error:
                print(type(error).__name__, error)
asyncio.run(main())
"""


def test_too_many_open_files_name_the_cure(tmp_path: Path) -> None:
    lines = run(OPEN_TOO_MUCH, tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["StorageError"] * 3
    assert all("ulimit" in line for line in lines)
    assert files(tmp_path) == []


async def test_draft_below_the_free_floor_is_rejected(tmp_path: Path) -> None:
    """The database on the same disk must still be able to write."""
    blobs = LocalBlobs(tmp_path / "blobs", free_floor=2**60)
    with pytest.raises(StorageFull, match="BROKER_RETENTION_HOURS"):
        async with blobs.new_draft("task_1"):
            pytest.fail("not reached")
    with pytest.raises(StorageFull):
        await blobs.check()
    assert files(tmp_path) == []


async def test_draft_above_the_free_floor_is_stored(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs", free_floor=1)
    await blobs.check()
    async with blobs.new_draft("task_1") as draft:
        await draft.commit()


async def test_root_that_is_a_file_is_an_error_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    blobs = LocalBlobs(tmp_path / "taken")
    with pytest.raises(StorageError, match="BROKER_BLOB_URL must name a folder") as caught:
        await blobs.check()
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(StorageError):
        async with blobs.new_draft("task_1"):
            pytest.fail("not reached")
    assert await blobs.delete_stale_drafts(0) == 0


class Failing(LocalBlobs):
    """Store on a disk that fails at the n-th sync."""

    syncs = 0
    fails_at = 1

    def sync(self, descriptor: int) -> None:
        self.syncs += 1
        if self.syncs == self.fails_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(descriptor)

    def write_durably(self, descriptor: int, data: bytes) -> None:
        self.sync(descriptor)
        super().write_durably(descriptor, data)


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
async def test_failed_sync_fails_the_commit(tmp_path: Path, fails_at: int) -> None:
    blobs = Failing(tmp_path)
    blobs.fails_at = fails_at
    before = descriptors()
    with pytest.raises(StorageError, match="the disk is failing"):
        async with blobs.new_draft("task_1") as draft:
            await draft.write(b"x")
            await draft.commit()
    assert files(tmp_path / ".drafts") == []
    assert descriptors() == before
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x")
        blob = await draft.commit()
    assert len(files(tmp_path)) == 1
    assert blob.size == 1


@OWNERS
@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
async def test_failed_sync_fails_bytes_in_memory(tmp_path: Path, fails_at: int, owner: str) -> None:
    blobs = Failing(tmp_path)
    blobs.fails_at = fails_at
    before = descriptors()
    with pytest.raises(StorageError, match="the disk is failing"):
        await blobs.new_draft(owner).store(b"x")
    assert [path.name for path in files(tmp_path) if path.name.startswith(".")] == []
    assert descriptors() == before
    blob = await blobs.new_draft(owner).store(b"x")
    assert [path.name for path in files(tmp_path)] == [f"{owner}.{blob.sha256}"]


async def test_failed_check_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is failing"):
        await Failing(tmp_path).check()
    assert files(tmp_path) == []


# -- a power cut


class Recording(LocalBlobs):
    """Store that records what is synced, and whether the blob had its name at that time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.synced: list[tuple[str, bool]] = []

    def write_durably(self, descriptor: int, data: bytes) -> None:
        super().write_durably(descriptor, data)
        self.sync(descriptor)

    def sync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        named = any(len(path.suffix) == 65 for path in files(self.root))
        self.synced.append((path.relative_to(self.root).parts[0] if path != self.root else "root", named))
        self.lengths = [path.stat().st_size for path in files(self.root)]
        super().sync(descriptor)


async def test_commit_syncs_bytes_then_renames_then_syncs_folders(tmp_path: Path) -> None:
    """The folder, and those above it, which may be new."""
    blobs = Recording(tmp_path)
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x" * 10)
        assert blobs.synced == []
        await draft.commit()
        assert blobs.synced == [(".drafts", False), ("_1", True), ("_1", True), ("root", True)]
    assert blobs.lengths == [10]


async def test_bytes_in_memory_are_synced_before_they_have_their_name(tmp_path: Path) -> None:
    blobs = Recording(tmp_path)
    await blobs.new_draft("task_1").store(b"x" * 10)
    assert blobs.synced == [("_1", False), ("_1", True), ("_1", True), ("root", True)]
    assert blobs.lengths == [10]


async def test_shared_folder_gets_a_durable_name_once(tmp_path: Path) -> None:
    """Later blobs need their bytes and their own name synced, nothing above it; also those of large drafts."""
    blobs, outer = Recording(tmp_path), "task_0190ab"
    await blobs.new_draft(TIMED[0]).store(b"x")
    assert blobs.synced == [(outer, False), (outer, True), (outer, True), ("root", True)]
    blobs.synced.clear()
    await blobs.new_draft(TIMED[1]).store(b"x")
    assert [place for place, _ in blobs.synced] == [outer, outer]
    blobs.synced.clear()
    async with blobs.new_draft(TIMED[2]) as draft:
        await draft.write(b"x")
        await draft.commit()
    assert [place for place, _ in blobs.synced] == [".drafts", outer]


async def test_shared_folder_that_was_deleted_gets_a_durable_name_again(tmp_path: Path) -> None:
    """It is still open in the process that used it."""
    blobs, other = Recording(tmp_path), LocalBlobs(tmp_path)
    await blobs.new_draft(TIMED[0]).store(b"x")
    assert await other.delete(TIMED[0]) == 1
    assert not (tmp_path / "task_0190ab").exists()
    blobs.synced.clear()
    blob = await blobs.new_draft(TIMED[1]).store(b"x")
    assert [place for place, _ in blobs.synced] == ["task_0190ab", "task_0190ab", "task_0190ab", "root"]
    assert [path.name for path in files(tmp_path)] == [blob.name.replace("/", ".")]


@pytest.mark.parametrize("owner", [lambda at: new_id("task", at), lambda at: reference_owner(new_id("batch", at))])
def test_owners_of_four_seconds_share_a_folder(owner: Callable[[float], str]) -> None:
    start = 0x0190AB12000 / 1000
    first, last, next_one = (place_of(owner(start + seconds)) for seconds in (0.0005, 4.0950, 4.0965))
    assert first.is_shared
    assert (first == last, first == next_one, first.outer == next_one.outer) == (True, False, True)


async def test_few_folders_stay_open(tmp_path: Path) -> None:
    def opened() -> int:
        files = [os.path.realpath(f"/proc/self/fd/{file}") for file in os.listdir("/proc/self/fd")]
        return sum(file.startswith(str(tmp_path)) for file in files)

    blobs = LocalBlobs(tmp_path)
    for number in range(MAX_OPEN_FOLDERS + 10):
        await blobs.new_draft(f"task_0190ab{number:02x}{'0' * 35}").store(b"x")
    await blobs.new_draft("task_1").store(b"x")
    assert opened() == MAX_OPEN_FOLDERS
    del blobs

    async def all_are_closed() -> bool:
        gc.collect()
        return opened() == 0

    await until(all_are_closed)  # the thread that stored last may still hold the store


async def test_root_is_synced_once_per_outer_folder_and_again_for_a_new_one(tmp_path: Path) -> None:
    """An outer folder that has a durable name keeps it; one that was deleted by hand is a new one."""
    blobs = Recording(tmp_path)
    for owner, syncs in (("task_1", 1), ("another_1", 1), ("task_2", 2)):
        await blobs.new_draft(owner).store(b"x")
        assert blobs.synced.count(("root", True)) == syncs
    shutil.rmtree(tmp_path / "_1")
    await blobs.new_draft("task_1").store(b"x")
    assert blobs.synced.count(("root", True)) == 3


# -- leftovers


DIE = """
async def main():
    blobs = LocalBlobs(Path(sys.argv[1]))
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x" * 1000)
        os._exit(0)
asyncio.run(main())
"""


async def test_draft_of_a_dead_writer_is_deleted(blobs: LocalBlobs) -> None:
    run(DIE, blobs.root)
    (orphan,) = files(blobs.root)
    assert await blobs.delete_stale_drafts(3600) == 0  # too young
    os.utime(orphan, (0, 0))
    assert await blobs.delete_stale_drafts(3600) == 1
    assert files(blobs.root) == []
    assert await blobs.delete_stale_drafts(3600) == 0


async def test_old_draft_of_a_living_writer_is_kept(blobs: LocalBlobs) -> None:
    """A process that starts must not delete the drafts of others."""
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"slow")
        os.utime(draft.path, (0, 0))
        assert await blobs.delete_stale_drafts(0) == 0
        assert (await draft.commit()).size == 4


async def test_empty_store_has_no_stale_drafts(blobs: LocalBlobs) -> None:
    assert await blobs.delete_stale_drafts(0) == 0


async def test_folders_and_links_among_drafts_are_left_alone(blobs: LocalBlobs) -> None:
    (blobs.root / ".drafts" / "folder").mkdir(parents=True)
    (blobs.root / ".drafts" / "link").symlink_to("/nowhere")
    assert await blobs.delete_stale_drafts(-1) == 0


async def test_write_outside_the_block_is_an_error(blobs: LocalBlobs) -> None:
    draft = blobs.new_draft("task_1")
    with pytest.raises(RuntimeError, match="async with"):
        await draft.write(b"x")


async def test_commit_of_a_deleted_draft_is_an_error(blobs: LocalBlobs) -> None:
    with pytest.raises(StorageError):
        async with blobs.new_draft("task_1") as draft:
            await draft.write(b"x")
            draft.path.unlink()
            await draft.commit()
    assert files(blobs.root) == []


@OWNERS
def test_folder_deleted_while_a_blob_is_placed_is_created_again(tmp_path: Path, owner: str) -> None:
    """Between any two system calls; without the syncs, which would make the moment rare."""

    class Unsynced(LocalBlobs):
        def sync(self, descriptor: int) -> None:
            pass

    blobs, folders = Unsynced(tmp_path), BlobFolders(tmp_path, os.fsync, group_read=False)
    names = [f"{number:064}" for number in range(600)]
    for name in names:
        (tmp_path / name).touch()

    def place() -> None:
        for name in names:
            blobs.place(tmp_path / name, owner, name)

    with ThreadPoolExecutor(4) as threads:
        placing = threads.submit(place)

        def remove() -> int:
            removed = 0
            while not placing.done():
                removed += folders.remove([owner])
            return removed

        removers = [threads.submit(remove) for _ in range(3)]
        placing.result()
    left = folders.remove([owner])
    assert sum(remover.result() for remover in removers) + left == len(names)


@OWNERS
async def test_deleted_owner_leaves_no_folder(blobs: LocalBlobs, owner: str) -> None:
    async with blobs.new_draft(owner) as draft:
        await draft.commit()
    assert await blobs.delete(owner) == 1
    assert not list(blobs.root.rglob("task_*"))


async def test_owners_of_a_shared_folder_are_deleted_without_the_others(blobs: LocalBlobs) -> None:
    kept = [await blobs.new_draft(owner).store(b"x") for owner in [*TIMED, "task_1"]]
    await blobs.delete_of_owners([TIMED[0], TIMED[2], "task_2"])
    assert [path.name for path in files(blobs.root)] == [kept[3].name.replace("/", "."), kept[1].name.replace("/", ".")]
    assert sorted(await blobs.list_owners(0)) == [TIMED[1], "task_1"]
    await blobs.delete_of_owners([TIMED[1], "task_1"])
    assert sorted(path.name for path in blobs.root.iterdir()) == [".drafts", "_1"]


async def test_newest_file_of_an_owner_counts(blobs: LocalBlobs) -> None:
    """Also beside old files of others in the same folder."""
    old = [await blobs.new_draft(owner).store(data) for owner, data in zip(TIMED, (b"x", b"y", b"z"), strict=True)]
    for path in files(blobs.root):
        os.utime(path, (0, 0))
    await blobs.new_draft(TIMED[1]).store(b"new")
    assert sorted(await blobs.list_owners(3600)) == [TIMED[0], TIMED[2]]
    assert await blobs.list_owners(0, since=3600) == [TIMED[1]]
    assert len(old) == 3


async def test_draft_of_a_dead_writer_is_found_by_its_owner(blobs: LocalBlobs) -> None:
    """It is deleted as what has no row."""
    await blobs.new_draft(TIMED[0]).store(b"x")
    (path,) = files(blobs.root)
    path.with_name(f".{TIMED[1]}.1f").write_bytes(b"half")
    assert sorted(await blobs.list_owners(0)) == TIMED[:2]
    assert await blobs.delete(TIMED[1]) == 1
    assert files(blobs.root) == [path]


async def test_bytes_in_memory_survive_a_delete_of_their_owner_at_the_same_time(tmp_path: Path) -> None:
    """Their draft is in the folder that it deletes, so they are written again."""

    class Deleting(LocalBlobs):
        deletes = 2

        def write_durably(self, descriptor: int, data: bytes) -> None:
            super().write_durably(descriptor, data)
            if self.deletes:
                self.deletes -= 1
                shutil.rmtree(tmp_path / "_1" / "task_1")

    blobs = Deleting(tmp_path)
    blob = await blobs.new_draft("task_1").store(b"x" * 10)
    assert [(path.name, path.stat().st_size) for path in files(tmp_path)] == [(f"task_1.{blob.sha256}", 10)]


async def test_draft_of_a_dead_writer_in_a_folder_of_an_owner_is_deleted_with_it(blobs: LocalBlobs) -> None:
    (blobs.root / "_1" / "task_1").mkdir(parents=True)
    (blobs.root / "_1" / "task_1" / ".task_1.0123456789abcdef").write_bytes(b"x")
    await blobs.new_draft("task_1").store(b"x")
    assert await blobs.delete("task_1") == 2
    assert files(blobs.root) == []


@pytest.mark.parametrize("steps", range(0, 40, 3))
def test_cancelled_writer_leaves_nothing(tmp_path: Path, steps: int) -> None:
    """Cancelled anywhere, its thread included: no draft, no half blob, no open file."""
    blobs = LocalBlobs(tmp_path)

    async def write() -> None:
        async with blobs.new_draft("task_1") as draft:
            for _ in range(3):
                await draft.write(b"x" * 500_000)
            await draft.commit()

    async def cancel() -> None:
        writing = [asyncio.create_task(write()) for _ in range(20)]  # more than there are threads
        for _ in range(steps):
            await asyncio.sleep(0)
        for _ in range(6):  # repeatedly, as cancel scopes do
            for writer in writing:
                writer.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*writing, return_exceptions=True)

    before = descriptors()
    asyncio.run(cancel())  # waits for its threads
    assert descriptors() == before
    assert [path.stat().st_size for path in files(tmp_path)] in ([], [1_500_000])
    assert files(tmp_path / ".drafts") == []


async def test_reader_closes_its_file_at_the_end_on_close_and_when_dropped(blobs: LocalBlobs) -> None:
    """A client may disconnect at any time, also before the first chunk."""
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x" * 3_000_000)
        blob = await draft.commit()
    before = descriptors()
    assert sum([len(chunk) async for chunk in await blobs.open(blob.name)]) == 3_000_000
    assert descriptors() == before
    closed = await blobs.open(blob.name)
    assert descriptors() == before + 1
    await closed.aclose()
    assert descriptors() == before
    forgotten = await blobs.open(blob.name)
    del forgotten
    async for _ in await blobs.open(blob.name):
        break

    async def all_are_closed() -> bool:
        return descriptors() == before

    await until(all_are_closed)  # the thread that read last may still hold the reader


# -- paths and links


@given(st.text())
def test_invalid_owner_is_rejected(owner: str) -> None:
    blobs = LocalBlobs(Path("/nonexistent"))
    if not (owner.isascii() and owner.replace("_", "a").isalnum() and len(owner) <= 80):
        with pytest.raises(ValueError, match="owner"):
            blobs.new_draft(owner)


async def test_link_in_place_of_a_blob_is_not_followed(blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x")
        blob = await draft.commit()
    (place,) = files(blobs.root)
    place.unlink()
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(BlobMissing):
        await blobs.open(blob.name)
    assert await blobs.delete("task_1") == 1
    assert (tmp_path / "secret").read_text() == "secret"


async def test_link_in_place_of_an_owner_is_not_followed(blobs: LocalBlobs, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (blobs.root / "_1").mkdir(parents=True)
    (blobs.root / "_1" / "task_1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        async with blobs.new_draft("task_1") as draft:
            await draft.commit()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_link_in_place_of_a_draft_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "draft").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        HashingFile(tmp_path / "draft")
    assert (tmp_path / "precious").read_text() == "precious"


async def test_blobs_are_unreadable_for_other_users_of_the_machine(blobs: LocalBlobs) -> None:
    async with blobs.new_draft("task_1") as draft:
        await draft.commit()
    (place,) = files(blobs.root)
    assert place.stat().st_mode & 0o007 == 0


@pytest.fixture
def _private_umask() -> Iterator[None]:
    """Create files as the processes of a broker do."""
    before = os.umask(PRIVATE_UMASK)
    yield
    os.umask(before)


def modes(*places: Path | int) -> list[str]:
    return [f"{stat.S_IMODE(os.stat(place).st_mode):o}" for place in places]


class ModesWhenSynced(LocalBlobs):
    """Blob store that records the mode of each file and folder when it syncs it."""

    def __init__(self, root: Path, *, group_read: bool) -> None:
        super().__init__(root, group_read=group_read)
        self.synced: list[str] = []

    def sync(self, descriptor: int) -> None:
        self.synced += modes(descriptor)
        super().sync(descriptor)

    def write_durably(self, descriptor: int, data: bytes) -> None:
        self.synced += modes(descriptor)
        super().write_durably(descriptor, data)


@pytest.mark.parametrize(
    ("group_read", "expected"), [(False, ["600", "700", "700", "700"]), (True, ["640", "750", "750", "750"])]
)
async def test_group_reads_blobs_only_if_it_may(
    tmp_path: Path, _private_umask: None, group_read: bool, expected: list[str]
) -> None:
    """The folders above a blob, too; drafts stay closed. A blob has its mode before it has its name."""
    blobs = ModesWhenSynced(tmp_path / "blobs", group_read=group_read)
    async with blobs.new_draft("task_1") as draft:
        assert modes(draft.path) == ["600"]
        blob = await draft.commit()
    place = blobs.root / "_1" / "task_1" / f"task_1.{blob.sha256}"
    assert modes(place, place.parent, place.parent.parent, blobs.root) == expected
    assert blobs.synced == expected
    assert modes(blobs.root / ".drafts") == ["700"]


async def test_group_reads_bytes_that_were_in_memory(tmp_path: Path, _private_umask: None) -> None:
    blobs = ModesWhenSynced(tmp_path / "blobs", group_read=True)
    blob = await blobs.new_draft("task_1").store(b"x")
    place = blobs.root / "_1" / "task_1" / f"task_1.{blob.sha256}"
    assert modes(place, place.parent, place.parent.parent, blobs.root) == ["640", "750", "750", "750"]
    assert blobs.synced == ["640", "750", "750", "750"]


async def test_folders_of_an_earlier_start_are_opened_to_the_group(tmp_path: Path, _private_umask: None) -> None:
    folder = tmp_path / "blobs" / "_1" / "task_1"
    folder.mkdir(parents=True)
    blobs = LocalBlobs(tmp_path / "blobs", group_read=True)
    async with blobs.new_draft("task_1") as draft:
        await draft.commit()
    assert modes(folder, folder.parent, blobs.root) == ["750", "750", "750"]


async def test_blob_that_is_opened_for_a_canceled_reader_is_closed(blobs: LocalBlobs) -> None:
    """The collector warns about a file that is left to it (an error here), because it may come before its reader."""
    async with blobs.new_draft("owner") as draft:
        await draft.write(b"x")
        stored = await draft.commit()

    async def read() -> None:
        async with aclosing(await blobs.open(stored.name)) as chunks:
            async for _ in chunks:
                pass

    gc.disable()
    try:
        async with anyio.create_task_group() as reading:
            reading.start_soon(read)
            await anyio.lowlevel.checkpoint()
            reading.cancel_scope.cancel()
    finally:
        gc.enable()
    gc.collect()
