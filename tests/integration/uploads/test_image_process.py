"""The child process that validates images: same results as threads, and every way in which it ends."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import signal
import tracemalloc
from pathlib import Path

import pytest

from storage.errors import StorageError, StorageFull
from tests.support import samples as s
from tests.support.intake import MAX_BYTES, MAX_PIXELS, IntakeHarness, is_running, open_process, stream
from tests.support.planted_secrets import PLANTED, find_secrets
from tests.support.poisonable_child import ENDLESS, FORGETFUL, GREEDY, KILLED, LIAR, POISON, SLOW, STUCK
from uploads.intake import WRITE_SIZE_BYTES, AcceptedImage, Intake
from uploads.process.messages import (
    AnswerKind,
    ImageTask,
    MalformedAnswer,
    Validated,
    check_suitable,
    pack_answer,
    unpack_answer,
)
from uploads.structure import InvalidImage
from uploads.validation import NeedsDecoder

pytestmark = pytest.mark.anyio

POISONABLE = "tests.support.poisonable_child"


def marked(mark: bytes) -> bytes:
    """Return a valid image that carries a mark."""
    return s.plain_png(s.chunk(b"tEXt", b"a\0" + mark))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def outcome(harness: IntakeHarness, data: bytes) -> object:
    try:
        return await harness.accept(data)
    except InvalidImage as error:
        return str(error), error.code, error.truncated


# -- the same results


SAMPLES = {
    **s.IMAGES,
    "truncated": s.PNG[:-5],
    "cut in its first bytes": s.JPEG[:5],
    "with a tail": s.WEBP + b"tail",
    "a page": b"<html></html>",
    "undecodable": s.JPEG.replace(b"\xff\xdb", b"\xff\xe5"),
    "too many pixels": s.png(s.header(MAX_PIXELS, 2)),
    "large": s.plain_png(s.chunk(b"tEXt", b"a\0" + b"x" * WRITE_SIZE_BYTES)),
    "large and truncated": s.plain_png(s.chunk(b"tEXt", b"a\0" + b"x" * WRITE_SIZE_BYTES))[:-5],
    "small, and much to decode": s.flat_jpeg(1_600, progressive=True),
}


async def test_results_and_errors_are_those_of_threads(tmp_path: Path) -> None:
    (tmp_path / "threads").mkdir()
    (tmp_path / "process").mkdir()
    threads = IntakeHarness(tmp_path / "threads")
    async with open_process(tmp_path / "process") as process:
        isolated = IntakeHarness(tmp_path / "process", process)
        for name, data in SAMPLES.items():
            assert await outcome(isolated, data) == await outcome(threads, data), name
    stored = {path.name for path in threads.files()}
    assert stored == {path.name for path in isolated.files()}
    assert len(stored) > len(s.IMAGES)


async def test_full_disk_is_storage_full(tmp_path: Path) -> None:
    async with open_process(tmp_path, free_floor=2**60) as process:
        with pytest.raises(StorageFull, match="BROKER_RETENTION_HOURS"):
            await IntakeHarness(tmp_path, process).accept(s.PNG)


async def test_folder_that_is_none_is_a_storage_error_with_its_cure(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    async with open_process(tmp_path / "blobs") as process:
        with pytest.raises(StorageError, match="BROKER_BLOB_URL"):
            await IntakeHarness(tmp_path / "blobs", process).accept(s.PNG)


async def test_child_without_a_folder_validates_only(tmp_path: Path) -> None:
    """As with S3: the parent stores."""
    async with open_process(tmp_path, stores=False) as process:
        harness = IntakeHarness(tmp_path, process)
        image = await harness.accept(s.PNG)
        assert image.blob.sha256 == hashlib.sha256(s.PNG).hexdigest()
        assert (image.width, image.height) == (24, 17)
        with pytest.raises(InvalidImage):
            await harness.accept(s.PNG[:-5])
    assert len(harness.files()) == 1


async def test_stored_file_may_be_readable_by_the_group(tmp_path: Path) -> None:
    async with open_process(tmp_path, group_read=True) as process:
        await IntakeHarness(tmp_path, process).accept(s.PNG)
    (file,) = IntakeHarness(tmp_path).files()
    assert file.stat().st_mode & 0o777 == 0o640


# -- what the child has


def read_process(pid: int) -> tuple[bytes, str]:
    """Return the environment and the limits of a process."""
    process = Path(f"/proc/{pid}")
    return (process / "environ").read_bytes(), (process / "limits").read_text("ascii")


async def test_child_has_no_secret_no_core_dump_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANO_BANANA_API_KEY", PLANTED["kie"])
    async with open_process(tmp_path, module=POISONABLE) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        (pid,) = process.pids
        environment, limits = read_process(pid)
        with pytest.raises(InvalidImage, match="ends the decoder"):
            await harness.accept(marked(GREEDY))
    assert find_secrets(environment) == []
    assert b"NANO" not in environment
    assert next(line for line in limits.splitlines() if line.startswith("Max core")).split()[4:6] == ["0", "0"]


@pytest.mark.faults
async def test_images_that_need_all_memory_are_accepted_at_once(tmp_path: Path) -> None:
    """As many as are decoded at a time, beside small ones."""
    large = s.flat_jpeg(10_900, progressive=True)
    async with open_process(tmp_path) as process:
        harness = IntakeHarness(tmp_path, process)
        intake = harness.intake
        owners = [f"task_{number}" for number in range(4)]
        small = [f"small_{number}" for number in range(100)]
        images = await asyncio.gather(
            *(intake.from_stream(owner, stream(large), max_bytes=MAX_BYTES) for owner in owners),
            *(intake.from_stream(owner, stream(s.WEBP), max_bytes=MAX_BYTES) for owner in small),
        )
    assert len(images) == 104


async def test_child_starts_with_the_first_image_and_ends_without_a_trace(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests have left
    before = open_descriptors()
    async with open_process(tmp_path) as process:
        assert process.pids == []
        harness = IntakeHarness(tmp_path, process)
        await asyncio.gather(*(harness.accept(s.PNG) for _ in range(20)))
        (pid,) = process.pids
        assert is_running(pid)
    assert not is_running(pid)
    assert open_descriptors() <= before
    with pytest.raises(StorageError, match="the broker stops"):
        await harness.accept(s.PNG)


# -- losses


async def accept_all(intake: Intake, count: int, data: bytes = s.PNG) -> list[AcceptedImage]:
    owners = [f"owner_{number}" for number in range(count)]
    return await asyncio.gather(*(intake.from_stream(owner, stream(data), max_bytes=MAX_BYTES) for owner in owners))


async def test_killed_child_costs_no_image(tmp_path: Path) -> None:
    losses: list[str] = []
    async with open_process(tmp_path, losses=losses, module=POISONABLE) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        (pid,) = process.pids
        accepting = asyncio.create_task(accept_all(harness.intake, 8, marked(SLOW)))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        images = await accepting
        assert losses == ["it ended"]
        await harness.accept(s.WEBP)
        (new,) = process.pids
        assert new != pid
    assert len({image.blob.name for image in images}) == 8
    for path in harness.files():
        if not path.name.startswith("."):
            assert path.name.rpartition(".")[2] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("mark", [POISON, LIAR])
async def test_poisonous_image_is_rejected_and_no_other(tmp_path: Path, mark: bytes) -> None:
    """It ends the child twice, the second time alone; the images beside it are tried again and stored."""
    losses: list[str] = []
    async with open_process(tmp_path, losses=losses, module=POISONABLE, answer_seconds=1.0) as process:
        harness = IntakeHarness(tmp_path, process)
        beside = asyncio.create_task(accept_all(harness.intake, 5, marked(SLOW)))
        await asyncio.sleep(0)
        with pytest.raises(InvalidImage, match="ends the decoder") as caught:
            await harness.accept(marked(mark))
        assert caught.value.code == "invalid_image"
        assert len(await beside) == 5
        assert len(losses) == 2
        await harness.accept(s.PNG)


async def test_image_that_takes_too_much_processor_time_is_rejected_and_no_other(tmp_path: Path) -> None:
    """By the child itself, which knows which one it is."""
    async with open_process(tmp_path, module=POISONABLE, small_cpu_seconds=0.2) as process:
        harness = IntakeHarness(tmp_path, process)
        beside = asyncio.create_task(accept_all(harness.intake, 20, marked(SLOW)))
        await asyncio.sleep(0)
        endless = await asyncio.gather(*(outcome(harness, marked(ENDLESS)) for _ in range(3)))
        assert len(await beside) == 20
    assert {str(error) for error in endless} == {
        "('the image takes too long to decode: send a smaller picture', 'invalid_image', False)"
    }


@pytest.mark.faults
async def test_image_behind_one_that_never_ends_is_accepted(tmp_path: Path) -> None:
    """Also where both are suspected: the child that ends with the first one is not sent the second."""
    async with open_process(tmp_path, module=POISONABLE, small_cpu_seconds=0.2) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        (pid,) = process.pids
        endless = [asyncio.create_task(outcome(harness, marked(ENDLESS))) for _ in range(2)]
        accepting = asyncio.create_task(accept_all(harness.intake, 4, marked(SLOW)))
        await asyncio.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        assert len(await accepting) == 4
        assert ["too long" in str(error) for error in await asyncio.gather(*endless)] == [True, True]


@pytest.mark.parametrize("mark", [KILLED, STUCK, FORGETFUL])
async def test_image_is_not_rejected_for_what_the_machine_does(tmp_path: Path, mark: bytes) -> None:
    """Killed for want of memory, a disk that does not answer, an allocation that fails: it is tried again later."""
    async with open_process(tmp_path, module=POISONABLE, answer_seconds=0.5) as process:
        harness = IntakeHarness(tmp_path, process)
        with pytest.raises(StorageError, match=r"memory|disk"):
            await harness.accept(marked(mark))
        await harness.accept(s.PNG)


async def test_images_that_wait_for_a_child_are_not_suspected_when_it_ends(tmp_path: Path) -> None:
    """They go to the next child, together: one at a time, these would take four seconds."""
    async with open_process(tmp_path, module=POISONABLE) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        (pid,) = process.pids
        accepting = asyncio.create_task(accept_all(harness.intake, 40, marked(SLOW)))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(2.5):
            assert len(await accepting) == 40


async def test_poisonous_large_image_is_rejected_and_its_draft_removed(tmp_path: Path) -> None:
    async with open_process(tmp_path, module=POISONABLE) as process:
        harness = IntakeHarness(tmp_path / POISON.decode(), process)  # the path is what the child sees
        error = await harness.reject(marked(b"x" * WRITE_SIZE_BYTES))
        assert "ends the decoder" in str(error)


async def test_child_that_does_not_start_is_a_storage_error(tmp_path: Path) -> None:
    """The image is not to blame: it is tried again later."""
    async with open_process(tmp_path, module="tests.support.no_such_module") as process:
        for _ in range(2):
            with pytest.raises(StorageError, match="does not start"):
                await IntakeHarness(tmp_path, process).accept(s.PNG)


async def test_cancelled_caller_waits_for_the_end_of_the_work(tmp_path: Path) -> None:
    """So what the caller deletes then is not written afterwards."""
    async with open_process(tmp_path, module=POISONABLE) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        await harness.blobs.delete("task_1")
        accepting = asyncio.create_task(harness.accept(marked(SLOW)))
        await asyncio.sleep(0.05)
        for _ in range(2):
            accepting.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await accepting
        assert len(harness.files()) == 1


async def test_request_that_waits_for_the_child_costs_no_copy_and_is_cancelled_at_once(tmp_path: Path) -> None:
    """However many there are, and however slow the child is."""
    image = marked(b"x" * 250_000)
    async with open_process(tmp_path) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        (pid,) = process.pids
        os.kill(pid, signal.SIGSTOP)
        tracemalloc.start()
        works = [asyncio.create_task(process.store_small("owner", image, "image/png")) for _ in range(400)]
        await asyncio.sleep(0.05)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for work in works[100:]:
            work.cancel()
        done, _ = await asyncio.wait(works, timeout=0.1)
        os.kill(pid, signal.SIGCONT)
        assert held < 32 * 2**20
        assert len(done) == 300
        assert len(await asyncio.gather(*works[:100])) == 100


@pytest.mark.faults
async def test_cancelled_caller_waits_only_while_the_child_answers(tmp_path: Path) -> None:
    """So a broker stops, also beside a child that is stuck. The others are tried again."""
    async with open_process(tmp_path) as process:
        harness = IntakeHarness(tmp_path, process)
        await harness.accept(s.PNG)
        (pid,) = process.pids
        os.kill(pid, signal.SIGSTOP)
        beside = asyncio.create_task(accept_all(harness.intake, 20))
        accepting = asyncio.create_task(harness.accept(s.WEBP))
        await asyncio.sleep(0.05)
        accepting.cancel()
        async with asyncio.timeout(10):
            with pytest.raises(asyncio.CancelledError):
                await accepting
            assert len(await beside) == 20


# -- answers


def error_answer(kind: AnswerKind, **facts: object) -> bytes:
    return (7).to_bytes(8, "little") + bytes([kind]) + json.dumps(facts).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"ready",
        (7).to_bytes(8, "little") + b"\xff",
        pack_answer(7, Validated(width=1, height=1))[:-1],
        pack_answer(7, Validated(width=1, height=1)) + b"x",
        pack_answer(7, Validated(width=0, height=1)),
        pack_answer(7, Validated(width=MAX_PIXELS, height=2)),
        error_answer(AnswerKind.FULL),
        error_answer(AnswerKind.FULL, problem=1),
        error_answer(AnswerKind.FULL, problem="two\nlines"),
        error_answer(AnswerKind.UNAVAILABLE, problem="\x1b[2J"),
        error_answer(AnswerKind.UNAVAILABLE, problem="x" * 501),
        error_answer(AnswerKind.INVALID, problem="a", cure="b", code="internal_error", truncated=False),
        error_answer(AnswerKind.INVALID, problem="a", cure="b", code=["invalid_image"], truncated=False),
        error_answer(AnswerKind.INVALID, problem="a", cure="b", code="invalid_image", truncated=1),
        (7).to_bytes(8, "little") + bytes([AnswerKind.FULL]) + b"[" * 8000,
        (7).to_bytes(8, "little") + bytes([AnswerKind.FULL]) + b"\xff{}",
    ],
)
async def test_malformed_answer_is_recognized(answer: bytes) -> None:
    with pytest.raises(MalformedAnswer):
        unpack_answer(answer, MAX_PIXELS)


@pytest.mark.parametrize(
    ("task", "result"),
    [
        (ImageTask.VALIDATE_FILE, NeedsDecoder()),
        (ImageTask.VALIDATE_FILE, Validated(sha256=b"x" * 32, width=1, height=1)),
        (ImageTask.VALIDATE, Validated(sha256=b"x" * 32, width=1, height=1)),
        (ImageTask.STORE, Validated(width=1, height=1)),
    ],
)
async def test_answer_to_another_question_is_recognized(task: ImageTask, result: Validated | Exception) -> None:
    with pytest.raises(MalformedAnswer):
        check_suitable(task, result)


async def test_unexpected_error_of_the_child_is_named_without_its_text() -> None:
    try:
        raise KeyError("bytes of the image")
    except KeyError as error:
        number, result = unpack_answer(pack_answer(7, error), MAX_PIXELS)
    assert number == 7
    assert isinstance(result, RuntimeError)
    assert "KeyError at test_image_process.py:" in str(result)
    assert "bytes of" not in str(result)
