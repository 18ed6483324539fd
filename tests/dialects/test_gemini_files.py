"""Files of the Gemini API: the official SDK, the protocol of uploads in detail, and files as references."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from anyio import to_thread
from google import genai
from google.genai import errors, types
from pydantic import SecretStr

from broker.sandbox.engine import Options
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded, picture

pytestmark = pytest.mark.anyio

T = TypeVar("T")

KEY = "key-of-a-caller-0123456789"
OTHER_KEY = "key-of-another-0123456789"
PICTURE = encoded("PNG")
LARGE = encoded("PNG", picture(2000, 1500))
MODEL = "gemini-2.5-flash-image"
PNG = types.UploadFileConfig(mime_type="image/png")
START = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningBroker]:
    folder = tmp_path_factory.mktemp("gemini_files")
    keys = (SecretStr(KEY), SecretStr(OTHER_KEY))
    options = Options(duration=0.05, creates_per_window=10_000)
    async with open_broker(folder, api_keys=keys, options=options, max_file_size=2**24) as opened:
        yield opened


@contextmanager
def sdk(broker: RunningBroker, key: str = KEY, version: str | None = None) -> Iterator[genai.Client]:
    options = types.HttpOptions(base_url=str(broker.client.base_url), api_version=version)
    with genai.Client(api_key=key, http_options=options) as client:
        yield client


async def with_sdk(broker: RunningBroker, work: Callable[[genai.Client], T], **options: Any) -> T:
    def run() -> T:
        with sdk(broker, **options) as client:
            return work(client)

    return await to_thread.run_sync(run)


async def send(broker: RunningBroker, url: str, content: bytes = b"", key: str | None = None, **headers: str) -> Any:
    """POST to an upload address; `offset="3"` becomes the header of the protocol."""
    spelled = {f"X-Goog-Upload-{name.title()}": value for name, value in headers.items()}
    return await broker.client.post(url, content=content, headers=spelled | ({"x-goog-api-key": key} if key else {}))


async def begin(broker: RunningBroker, path: str = "/upload/v1beta/files", **file: Any) -> str:
    headers = {**START, "x-goog-api-key": KEY}
    answer = await broker.client.post(path, headers=headers, json={"file": file} if file else None)
    assert (answer.status_code, answer.headers["x-goog-upload-status"]) == (200, "active"), answer.text
    url: str = answer.headers["x-goog-upload-url"]
    return url


@pytest.mark.parametrize("version", [None, "v1beta"])
async def test_sdk_uploads_shows_lists_uses_and_deletes_a_file(
    broker: RunningBroker, tmp_path: Path, version: str | None
) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(LARGE)
    assert len(LARGE) > 8 * 2**20, "the SDK sends it in two parts"

    def work(client: genai.Client) -> None:
        file = client.files.upload(file=path, config={"display_name": "a fox"})
        assert (file.display_name, file.mime_type, file.size_bytes) == ("a fox", "image/png", len(LARGE))
        assert file.state == types.FileState.ACTIVE
        assert base64.b64decode(file.sha256_hash or "") == hashlib.sha256(LARGE).digest()
        assert file.name and file.expiration_time and file.create_time
        assert (file.expiration_time - file.create_time).total_seconds() == 24 * 3600
        assert client.files.get(name=file.name) == file
        other = client.files.upload(file=io.BytesIO(PICTURE), config={"mime_type": "image/png", "name": "my-fox"})
        assert other.name == "files/my-fox"
        listed = list(client.files.list(config={"page_size": 1}))
        assert [one.name for one in listed] == [other.name, file.name], "over two pages"
        answer = client.models.generate_content(model=MODEL, contents=asked(file, other))
        assert any(part.inline_data for part in answer.parts or ())
        for one in (file, other):
            assert one.name
            client.files.delete(name=one.name)
            with pytest.raises(errors.ClientError) as raised:
                client.files.get(name=one.name)
            assert (raised.value.code, raised.value.status) == (404, "NOT_FOUND")
        with pytest.raises(errors.ClientError) as raised:
            client.models.generate_content(model=MODEL, contents=asked(file))
        assert raised.value.code == 400 and "may have expired" in str(raised.value)

    await with_sdk(broker, work, version=version)
    (job,) = [job for job in await broker.provider_jobs() if job["request"]["input"]["prompt"] == "make it blue"][-1:]
    assert len(job["request"]["input"]["image_urls"]) == 2


async def test_files_of_one_key_are_not_those_of_another(broker: RunningBroker) -> None:
    file = await with_sdk(broker, lambda client: client.files.upload(file=io.BytesIO(PICTURE), config=PNG))

    def other(client: genai.Client) -> list[int]:
        assert list(client.files.list()) == []
        codes = []
        for act in (client.files.get, client.files.delete):
            with pytest.raises(errors.ClientError) as raised:
                act(name=file.name or "")
            codes.append(raised.value.code)
        return codes

    assert await with_sdk(broker, other, key=OTHER_KEY) == [404, 404]
    await with_sdk(broker, lambda client: client.files.delete(name=file.name or ""))


async def test_sdk_is_told_at_once_why_a_file_is_refused(broker: RunningBroker) -> None:
    def refused(data: bytes, **config: Any) -> errors.ClientError:
        with sdk(broker) as client, pytest.raises(errors.ClientError) as raised:
            client.files.upload(file=io.BytesIO(data), config=PNG.model_copy(update=config))
        return raised.value

    before = await stored(broker)
    assert "GIF" in str(await to_thread.run_sync(refused, b"GIF89a" + bytes(600)))
    assert (await to_thread.run_sync(refused, bytes(2**24 + 1))).code == 413
    with pytest.raises(errors.ClientError):
        await with_sdk(
            broker,
            lambda client: client.files.upload(file=io.BytesIO(PICTURE), config=PNG.model_copy(update={"name": "A"})),
        )
    assert await stored(broker) == before


async def test_upload_in_parts_with_query_repetition_and_cancel(broker: RunningBroker) -> None:
    url = await begin(broker, displayName="a fox")
    assert url.startswith(f"{str(broker.client.base_url).rstrip('/')}/upload/v1beta/files/")
    first = await send(broker, url, PICTURE[:400], command="upload", offset="0")
    again = await send(broker, url, PICTURE[:400], command="upload", offset="0")
    assert [answer.headers["x-goog-upload-status"] for answer in (first, again)] == ["active", "active"]
    gap = await send(broker, url, PICTURE[500:], command="upload, finalize", offset="500")
    assert (gap.status_code, "400 bytes" in gap.text) == (400, True)
    query = await send(broker, url, command="query")
    assert query.headers["x-goog-upload-size-received"] == "400"
    ended = [await send(broker, url, PICTURE[400:], command="upload, finalize", offset="400") for _ in range(2)]
    assert ended[0].json() == ended[1].json()
    assert (ended[0].json()["file"]["displayName"], ended[0].headers["x-goog-upload-status"]) == ("a fox", "final")
    assert (await send(broker, url, command="query")).json() == ended[0].json()
    assert (await send(broker, url, b"x", command="upload", offset="400")).status_code == 409
    name = ended[0].json()["file"]["name"]
    assert (await broker.client.delete(f"/v1/{name}", headers={"x-goog-api-key": KEY})).json() == {}

    url = await begin(broker, "/upload/v1/files")
    await send(broker, url, PICTURE[:400], command="upload", offset="0")
    assert (await send(broker, url, command="cancel")).headers["x-goog-upload-status"] == "cancelled"
    gone = await send(broker, url, PICTURE[400:], command="upload, finalize", offset="400")
    assert (gone.status_code, gone.headers["x-goog-upload-status"]) == (404, "final")


async def test_name_of_a_file_is_read_from_a_body_of_unknown_length(broker: RunningBroker) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield json.dumps({"file": {"name": "files/chunked-fox"}}).encode()

    begun = await broker.client.post("/upload/v1beta/files", content=body(), headers={**START, "x-goog-api-key": KEY})
    ended = await send(broker, begun.headers["x-goog-upload-url"], PICTURE, command="upload, finalize", offset="0")
    assert ended.json()["file"]["name"] == "files/chunked-fox"


async def test_upload_whose_parts_are_deleted_is_not_there(broker: RunningBroker) -> None:
    """Retention deletes the bytes first, another request that finishes or cancels it may do so, too."""
    begun = await send(broker, "/upload/v1beta/files", key=KEY, protocol="resumable", command="start")
    url = begun.headers["x-goog-upload-url"]
    await send(broker, url, PICTURE[:400], command="upload", offset="0")
    await broker.services.blobs.delete((await broker.services.files.get_upload(url.rpartition("/")[2])).owner)
    gone = await send(broker, url, PICTURE[400:], command="upload, finalize", offset="400")
    assert (gone.status_code, gone.headers["x-goog-upload-status"]) == (404, "final")


async def test_upload_in_countless_parts_is_refused(broker: RunningBroker) -> None:
    begun = await send(broker, "/upload/v1beta/files", key=KEY, protocol="resumable", command="start")
    url = begun.headers["x-goog-upload-url"]
    await send(broker, url, PICTURE[:1], command="upload", offset="0")
    upload = await broker.services.files.get_upload(url.rpartition("/")[2])
    many = json.dumps([*upload.parts] * 1000)
    sql = "UPDATE resumable_uploads SET parts = :many WHERE id = :id"
    await broker.services.database.execute(sql, many=many, id=upload.id)
    refused = await send(broker, url, PICTURE[1:2], command="upload", offset="1")
    assert (refused.status_code, refused.headers["x-goog-upload-status"]) == (413, "final")
    assert (await send(broker, url, PICTURE[:1], command="upload", offset="0")).status_code == 200, "a repetition"


async def test_whole_file_in_one_request(broker: RunningBroker) -> None:
    """As older SDKs send it: two parts, or the bytes alone."""
    start, boundary = json.dumps({"file": {"displayName": "ä fox"}}).encode(), b"xxBOUNDARYxx"
    body = b"--%b\r\nContent-Type: application/json; charset=utf-8\r\n\r\n%b\r\n--%b\r\nContent-Type: image/png\r\n\r\n"
    body = body % (boundary, start, boundary) + PICTURE + b"\r\n--%b--" % boundary
    headers = {"x-goog-api-key": KEY, "Content-Type": f"multipart/related; boundary={boundary.decode()}"}
    for protocol in ({"X-Goog-Upload-Protocol": "multipart"}, {}):
        answer = await broker.client.post("/upload/v1beta/files", content=body, headers={**headers, **protocol})
        assert answer.status_code == 200, answer.text
        assert answer.json()["file"]["displayName"] == "ä fox"
        assert answer.json()["file"]["sizeBytes"] == str(len(PICTURE))
    for broken in (body[:-20], body.replace(b"xxBOUNDARYxx--", b"other--"), start, b"--xxBOUNDARYxx\r\n"):
        refused = await broker.client.post("/upload/v1beta/files", content=broken, headers=headers)
        assert (refused.status_code, refused.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    raw = await send(broker, "/upload/v1/files?uploadType=media", PICTURE, KEY, **{"file-name": "fox.png"})
    assert raw.json()["file"]["displayName"] == "fox.png"
    metadata_alone = await broker.client.post("/upload/v1beta/files", json={}, headers={"x-goog-api-key": KEY})
    assert "X-Goog-Upload-Protocol" in metadata_alone.text


async def test_upload_address_is_the_one_by_which_the_client_came(broker: RunningBroker) -> None:
    headers = {**START, "x-goog-api-key": KEY, "Host": "broker.lan:8080", "X-Forwarded-Proto": "https"}
    answer = await broker.client.post("/upload/v1beta/files", headers=headers)
    host = answer.headers["x-goog-upload-url"].partition("/upload/")[0]
    assert host in {"https://broker.lan:8080", str(broker.client.base_url).rstrip("/")}
    stranger = await broker.client.post("/upload/v1beta/files", headers=START)
    assert stranger.status_code == 401


def asked(*files: types.File) -> Any:
    return ["make it blue", *files]


async def stored(broker: RunningBroker) -> list[str]:
    return sorted(await broker.services.blobs.list_owners(-60.0))
