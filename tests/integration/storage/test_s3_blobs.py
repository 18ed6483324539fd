"""Faults of the S3 store: a failing network, killed writers, foreign objects, errors and their cures, links."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.blobs.s3 import S3Blobs
from storage.blobs.staging import Blob
from storage.blobs.store import BlobMissing, Bucket
from storage.errors import StorageError, StorageFull
from tests.support.faulty_http import Script, Visit, answers, head, sends
from tests.support.faulty_s3 import Network, error, holds, network
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.anyio

MIB = 2**20
ROOT = Path(__file__).parents[3]
SECRET = "a-very-secret-secret"
USUAL = {"attempt_seconds": 10.0, "connect_seconds": 5.0, "total_seconds": 60.0, "retries": 1}
IMPATIENT = 0.4
"""Seconds for an attempt where the network hangs; elsewhere a busy machine must not look like one."""


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
async def net(s3_server: S3Server) -> AsyncIterator[Network]:
    async with network(int(s3_server.url.rpartition(":")[2])) as between:
        yield between


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("s3")] == []
    assert list((tmp_path / "scratch").glob("*")) == []


Make = Callable[..., S3Blobs]


@pytest.fixture
async def make(net: Network, bucket: str, tmp_path: Path) -> AsyncIterator[Make]:
    """Open stores behind the network; they are closed after the test."""
    async with AsyncExitStack() as stack:

        def store(**options: Any) -> S3Blobs:
            known: dict[str, Any] = {"name": bucket, "prefix": "images", "endpoint": net.url, "access_key": "test-id"}
            known |= {name: options.pop(name) for name in (*known, "links", "public_base") if name in options}
            place = Bucket(**known, secret_key=SECRET)
            blobs = S3Blobs(place, scratch=tmp_path / "scratch", **{**USUAL, **options})
            stack.push_async_callback(blobs.aclose)
            return blobs

        yield store


@pytest.fixture
def blobs(make: Make) -> S3Blobs:
    return make()


async def keep(blobs: S3Blobs, data: bytes, owner: str = "task_1", media_type: str | None = None) -> Blob:
    async with blobs.new_draft(owner) as draft:
        await draft.write(data)
        return await draft.commit(media_type)


async def read(blobs: S3Blobs, name: str, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in await blobs.open(name, start, stop)])


def stored(server: S3Server, bucket: str) -> list[str]:
    """Return the keys in the bucket, as any other client sees them."""
    return re.findall("<Key>(.*?)</Key>", httpx.get(f"{server.url}/{bucket}?list-type=2", verify=False).text)


def unfinished(server: S3Server, bucket: str) -> list[str]:
    return re.findall("<Key>(.*?)</Key>", httpx.get(f"{server.url}/{bucket}?uploads", verify=False).text)


def put(server: S3Server, bucket: str, key: str, data: bytes = b"foreign") -> None:
    httpx.put(f"{server.url}/{bucket}/{key}", content=data, verify=False).raise_for_status()


def name_of(data: bytes, owner: str = "task_1") -> str:
    return f"{owner}/{hashlib.sha256(data).hexdigest()}"


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


# -- a failing network


CALLS: dict[str, Callable[[S3Blobs], Awaitable[object]]] = {
    "keep": lambda blobs: keep(blobs, b"x"),
    "open": lambda blobs: blobs.open(name_of(b"x")),
    "delete": lambda blobs: blobs.delete("task_1"),
    "owners": lambda blobs: blobs.list_owners(0),
    "check": lambda blobs: blobs.check(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_call_to_a_hanging_store_times_out(make: Make, net: Network, call: str) -> None:
    """A hanging step would lose the lease of its task."""
    blobs = make(attempt_seconds=IMPATIENT, connect_seconds=IMPATIENT, retries=0)
    net.when(".", net.hang)
    async with within(5):
        with pytest.raises(StorageError):
            await CALLS[call](blobs)


async def test_wait_for_a_thread_counts_as_part_of_the_call(make: Make, net: Network) -> None:
    """Callers that wait for a slow store time out together, not one after the other."""
    blobs = make(threads=1, total_seconds=0.3, attempt_seconds=0.6)
    net.when(".", net.hang)
    async with within(1.5):
        errors = await asyncio.gather(*(keep(blobs, b"%d" % number) for number in range(5)), return_exceptions=True)
    assert {type(error) for error in errors} == {StorageError}
    assert "in time" in str(errors[0])


async def test_check_has_a_short_time_out(make: Make, net: Network) -> None:
    """Health checks and the start of the process wait for it."""
    net.when(".", net.hang)
    async with within(5):
        with pytest.raises(StorageError, match="in time"):
            await make(connect_seconds=0.2).check()
    net.when(".", error("503 Slow Down", "SlowDown"))
    async with within(5):
        with pytest.raises(StorageError, match="busy"):
            await make(retries=20).check()


async def test_busy_store_is_retried(make: Make, net: Network) -> None:
    blobs = make(retries=3)
    net.when("PUT", error("503 Slow Down", "SlowDown"), times=2)
    blob = await keep(blobs, b"x")
    assert net.count("PUT") == 3
    assert await read(blobs, blob.name) == b"x"


@pytest.mark.parametrize("size", [1, 12 * MIB])
async def test_upload_to_a_busy_store_fails_and_leaves_nothing_visible(
    blobs: S3Blobs, net: Network, s3_server: S3Server, bucket: str, size: int
) -> None:
    net.when("PUT", error("503 Slow Down", "SlowDown"))
    with pytest.raises(StorageError, match=r"503 SlowDown.*busy"):
        await keep(blobs, b"x" * size)
    net.heal()
    assert stored(s3_server, bucket) == []
    blob = await keep(blobs, b"x" * size)
    assert stored(s3_server, bucket) == [f"images/{blob.name}"]


@pytest.mark.parametrize("size", [MIB, 12 * MIB])
async def test_upload_cut_once_is_retried(blobs: S3Blobs, net: Network, size: int) -> None:
    data = os.urandom(size)
    net.when("PUT", net.cut_request, times=1)
    assert await read(blobs, (await keep(blobs, data)).name) == data


async def test_upload_always_cut_leaves_nothing(blobs: S3Blobs, net: Network, s3_server: S3Server, bucket: str) -> None:
    """Two parts exist when the third fails: the upload is aborted."""
    aborted = asyncio.Event()

    async def abort(visit: Visit) -> None:
        await net.forward(visit)
        aborted.set()

    net.when("partNumber=3", net.cut_request)
    net.when("DELETE", abort)
    with pytest.raises(StorageError):
        await keep(blobs, b"x" * (12 * MIB))
    assert stored(s3_server, bucket) == []
    async with asyncio.timeout(5):
        await aborted.wait()
    net.heal()
    blob = await keep(blobs, b"x" * (12 * MIB))
    assert stored(s3_server, bucket) == [f"images/{blob.name}"]
    assert unfinished(s3_server, bucket) == []


async def test_upload_stored_with_another_size_is_an_error(blobs: S3Blobs, net: Network) -> None:
    """A row may name the blob only when it is complete."""
    net.when("HEAD", holds(5, "Tue, 24 Nov 2026 00:00:00 GMT"))
    with pytest.raises(StorageError, match="another size"):
        await keep(blobs, b"x" * (6 * MIB))


async def test_download_cut_once_is_complete(blobs: S3Blobs, net: Network) -> None:
    data = os.urandom(3 * MIB)
    blob = await keep(blobs, data)
    net.when("GET", net.cut_answer, times=1)
    assert await read(blobs, blob.name) == data


@pytest.mark.parametrize("bounds", [(0, None), (7, 2 * MIB)])
async def test_download_always_cut_is_an_error(blobs: S3Blobs, net: Network, bounds: tuple[int, int | None]) -> None:
    data = os.urandom(3 * MIB)
    blob = await keep(blobs, data)
    net.when("GET", net.cut_answer, times=1)
    net.when("GET", error("503 Slow Down", "SlowDown"))
    net.when("GET", net.cut_answer, times=1)
    seen = b""
    with pytest.raises(StorageError):
        async for chunk in await blobs.open(blob.name, *bounds):
            seen += chunk
    assert data[bounds[0] :].startswith(seen)


async def test_response_shorter_than_its_range_is_an_error(blobs: S3Blobs, net: Network) -> None:
    """Proxies between broker and store have been seen to send such responses."""
    part = ("Content-Length: 5", "Content-Range: bytes 1-10/11", "Last-Modified: Tue, 24 Nov 2026 00:00:00 GMT")
    net.when("GET", sends(head("206 Partial Content", *part, 'ETag: "x"', "Connection: close"), b"short"))
    with pytest.raises(StorageError, match="ended the connection"):
        await read(blobs, name_of(b"x"), 1)


async def test_stalled_download_times_out(make: Make, net: Network) -> None:
    blobs = make(attempt_seconds=IMPATIENT, retries=0)
    blob = await keep(blobs, b"x" * (3 * MIB))
    net.when("GET", net.half_and_hang)
    async with within(5):
        with pytest.raises(StorageError):
            await read(blobs, blob.name)


async def test_slow_reader_does_not_time_out(make: Make) -> None:
    """A client on a slow line may take longer for an image than a request may take."""
    blobs = make(attempt_seconds=IMPATIENT, retries=0)
    data = os.urandom(24 * MIB)
    blob = await keep(make(), data)
    async with aclosing(await blobs.open(blob.name)) as reading:
        first = await anext(aiter(reading))
        await asyncio.sleep(IMPATIENT * 1.5)  # longer than an attempt may take
        assert first + b"".join([chunk async for chunk in reading]) == data


async def test_closed_reader_closes_its_connection_at_once(blobs: S3Blobs, net: Network) -> None:
    blob = await keep(blobs, b"x" * (3 * MIB))
    net.when("GET", net.half_and_hang)
    for chunks in (0, 1):
        net.left.clear()
        reading = await blobs.open(blob.name)
        for _ in range(chunks):
            await anext(aiter(reading))
        await reading.aclose()
        async with asyncio.timeout(5):
            await net.left.wait()


async def test_cancelled_read_ends_the_reader(blobs: S3Blobs) -> None:
    """The bytes that its thread read are lost, and none may follow that gap."""
    data = os.urandom(3 * MIB)
    reading = await blobs.open((await keep(blobs, data)).name)
    waiting = asyncio.ensure_future(anext(aiter(reading)))
    await asyncio.sleep(0)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    with pytest.raises(StopAsyncIteration):
        await anext(aiter(reading))


# -- cancelled and killed writers


async def test_cancelled_writer_returns_at_once_and_leaves_nothing_visible(
    make: Make, net: Network, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    blobs = make(attempt_seconds=3.0)
    net.when("partNumber=2", net.hang, times=1)  # the store recovers, and would accept the rest
    writing = asyncio.create_task(keep(blobs, b"x" * (24 * MIB)))
    await net.hanging.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not net.left.is_set()  # its request still waits
    assert list((tmp_path / "scratch").iterdir()) == []
    await blobs.aclose()
    assert stored(s3_server, bucket) == []


WRITE = """
import asyncio, sys
from pathlib import Path
from storage.blobs.s3 import S3Blobs
from storage.blobs.store import Bucket
async def main():
    bucket = Bucket(name=sys.argv[1], prefix="images", endpoint=sys.argv[3], access_key="id", secret_key="secret")
    blobs = S3Blobs(bucket, scratch=Path(sys.argv[2]))
    async with blobs.new_draft("task_1") as draft:
        await draft.write(b"x" * 12 * 2**20)
        await draft.commit()
asyncio.run(main())
"""


async def test_draft_of_a_killed_writer_is_deleted_and_its_upload_left_to_the_bucket(
    blobs: S3Blobs, net: Network, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    net.when("partNumber=3", net.hang)
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITE, bucket, str(tmp_path / "scratch"), net.url, env={"PYTHONPATH": str(ROOT)}
    )
    await net.hanging.wait()
    writer.kill()
    await writer.wait()
    net.heal()
    (orphan,) = (tmp_path / "scratch").iterdir()
    os.utime(orphan, (0, 0))
    assert await blobs.delete_stale_drafts(3600) == 1
    assert len(unfinished(s3_server, bucket)) == 1
    assert await blobs.delete_stale_drafts(3600) == 0
    assert stored(s3_server, bucket) == []


# -- existing objects


async def test_equal_bytes_are_uploaded_again(blobs: S3Blobs, net: Network) -> None:
    """Blobs without a row are deleted by age, and their row may not exist yet."""
    await keep(blobs, b"equal")
    await keep(blobs, b"equal")
    assert net.count("PUT") == 2


async def test_incomplete_object_of_the_same_name_is_replaced(blobs: S3Blobs, s3_server: S3Server, bucket: str) -> None:
    put(s3_server, bucket, f"images/{name_of(b'whole')}", b"wh")
    assert await read(blobs, (await keep(blobs, b"whole")).name) == b"whole"


async def test_foreign_objects_are_left_alone(blobs: S3Blobs, s3_server: S3Server, bucket: str) -> None:
    blob = await keep(blobs, b"x")
    foreign = [
        "images/.check",
        "images/task_1/readme.txt",
        f"images/task_1/{'0' * 64}/more",
        f"images/deep/{blob.name}",
        f"images2/{blob.name}",
        f"other/{blob.name}",
        blob.name,
    ]
    for key in foreign:
        put(s3_server, bucket, key)
    assert await blobs.list_owners(0) == ["task_1"]
    assert await blobs.delete("task_1") == 1
    assert await blobs.list_owners(0) == []
    assert sorted(stored(s3_server, bucket)) == sorted(foreign)


async def test_store_without_a_prefix_uses_the_whole_bucket(make: Make, s3_server: S3Server, bucket: str) -> None:
    blobs = make(prefix="")
    blob = await keep(blobs, b"x")
    assert stored(s3_server, bucket) == [blob.name]
    await blobs.check()
    assert await blobs.list_owners(0) == ["task_1"]
    assert await blobs.delete_stale_drafts(0) == 0
    assert await blobs.delete("task_1") == 1


async def test_key_that_cannot_be_listed_is_an_error_with_the_cure(
    blobs: S3Blobs, s3_server: S3Server, bucket: str
) -> None:
    """obstore stops at such a key, so blobs without a row cannot be found until it is removed."""
    put(s3_server, bucket, "images//odd")
    with pytest.raises(StorageError, match="empty part"):
        await blobs.list_owners(0)


# -- errors and their cures


AMZ_KEY = "<AWSAccessKeyId>test-id</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256</StringToSign>"
ERRORS: dict[str, tuple[Script, str]] = {
    "key": (error("403 Forbidden", "InvalidAccessKeyId", AMZ_KEY), "AWS_ACCESS_KEY_ID .*MINIO_ACCESS_KEY"),
    "secret": (error("403 Forbidden", "SignatureDoesNotMatch", AMZ_KEY), "AWS_SECRET_ACCESS_KEY .*MINIO_SECRET_KEY"),
    "rights": (error("403 Forbidden", "AccessDenied"), "read, write, list and delete"),
    "token": (error("400 Bad Request", "ExpiredToken"), "AWS_SESSION_TOKEN"),
    "bucket": (error("404 Not Found", "NoSuchBucket"), "BROKER_BLOB_URL"),
    "region": (error("301 Moved Permanently", "PermanentRedirect"), "AWS_REGION"),
    "other region": (error("400 Bad Request", "AuthorizationHeaderMalformed"), "AWS_REGION"),
    "clock": (error("403 Forbidden", "RequestTimeTooSkewed"), "clock"),
    "unknown": (error("400 Bad Request", "SomethingNew"), "400 SomethingNew.*its own log"),
    "no S3": (answers("404 Not Found", b"<html>nginx</html>"), "BROKER_BLOB_URL"),
}


def shown(caught: BaseException) -> str:
    return "".join(traceback.format_exception(caught)) + repr(caught)


@pytest.mark.parametrize("name", ERRORS)
async def test_error_names_the_cure_and_no_secret(blobs: S3Blobs, net: Network, name: str) -> None:
    script, cure = ERRORS[name]
    net.when(".", script)
    with pytest.raises(StorageError, match=cure) as caught:
        await blobs.check()
    assert not re.search(f"{SECRET}|test-id|AWS4|127.0.0.1", shown(caught.value))


@pytest.mark.parametrize("call", [call for call in CALLS if call != "open"])
async def test_missing_bucket_is_an_error_and_not_a_missing_image(make: Make, call: str) -> None:
    with pytest.raises(StorageError, match="BROKER_BLOB_URL"):
        await CALLS[call](make(name="missing-bucket"))
    with pytest.raises(StorageError, match="BROKER_BLOB_URL"):
        await make(name="missing-bucket").open(name_of(b"x"))


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://nowhere.invalid"])
async def test_unreachable_store_names_the_endpoint(make: Make, endpoint: str) -> None:
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL \(or MINIO_ENDPOINT\)") as caught:
        await CALLS["check"](make(endpoint=endpoint))
    assert not re.search(f"{SECRET}|test-id|127.0.0.1", shown(caught.value))


async def test_https_to_a_store_without_it_names_the_endpoint(make: Make, s3_server: S3Server) -> None:
    with pytest.raises(StorageError, match=r"AWS_ENDPOINT_URL.*https"):
        await make(endpoint=s3_server.url.replace("http:", "https:")).check()


@pytest.mark.parametrize(
    "response", [error("507 Insufficient Storage", "XMinioStorageFull"), error("403 No", "QuotaExceeded")]
)
async def test_full_bucket_is_storage_full(blobs: S3Blobs, net: Network, response: Script) -> None:
    net.when("PUT", response)
    with pytest.raises(StorageFull, match="BROKER_RETENTION_HOURS"):
        await keep(blobs, b"x")


async def test_draft_below_the_free_floor_is_rejected(make: Make) -> None:
    with pytest.raises(StorageFull, match="BROKER_DATA_DIR"):
        await make(free_floor=2**60).check()


async def test_commit_of_a_deleted_draft_is_an_error(blobs: S3Blobs) -> None:
    with pytest.raises(StorageError, match="BROKER_DATA_DIR"):
        async with blobs.new_draft("task_1") as draft:
            await draft.write(b"x")
            draft.path.unlink()
            await draft.commit()


# -- links


@pytest.mark.parametrize("size", [9, 6 * MIB])
async def test_presigned_link_needs_no_key_and_has_the_media_type(make: Make, size: int) -> None:
    blobs = make(links="presigned")
    blob = await keep(blobs, b"x" * size, media_type="image/png")
    link = await blobs.get_link(blob.name, 60)
    assert link is not None
    assert "X-Amz-Expires=60&" in link
    assert SECRET not in link
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.get(link)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.content == b"x" * size


async def test_bytes_without_a_type_are_not_shown_as_a_page(make: Make) -> None:
    blobs = make(links="presigned")
    link = await blobs.get_link((await keep(blobs, b"<html>")).name, 60)
    async with httpx.AsyncClient(verify=False) as client:
        assert (await client.get(link or "")).headers["content-type"] == "application/octet-stream"


async def test_presigned_link_is_valid_for_at_most_a_week(make: Make) -> None:
    """S3 serves no longer ones."""
    link = await make(links="presigned").get_link(name_of(b"x"), 10**9)
    assert "X-Amz-Expires=604800&" in (link or "")


async def test_public_link_is_the_base_and_the_key(make: Make) -> None:
    blobs = make(links="public", public_base="https://images.example.com/bucket/")
    assert await blobs.get_link(name_of(b"x"), 60) == f"https://images.example.com/bucket/images/{name_of(b'x')}"


@pytest.mark.parametrize("links", ["presigned", "public"])
async def test_invalid_name_has_no_link(make: Make, links: str) -> None:
    with pytest.raises(BlobMissing):
        await make(links=links, public_base="https://images.example.com").get_link("../secrets", 60)


@pytest.mark.parametrize(
    ("bucket", "endpoint", "expected"),
    [
        ("images", None, "https://images.s3.eu-west-1.amazonaws.com/task_1/"),
        ("im.ages", None, "https://s3.eu-west-1.amazonaws.com/im.ages/task_1/"),
        ("images", "http://localhost:9000", "http://localhost:9000/images/task_1/"),
    ],
)
async def test_empty_endpoint_variables_of_the_environment_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str, endpoint: str | None, expected: str
) -> None:
    """A compose file may set them to an empty value."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    place = Bucket(
        name=bucket,
        endpoint=endpoint,
        region="eu-west-1",
        access_key="key",
        secret_key="secret",
        links="presigned",
    )
    store = S3Blobs(place, scratch=tmp_path)
    link = await store.get_link(f"task_1/{'0' * 64}", 60)
    await store.aclose()
    assert link is not None
    assert link.startswith(expected)
