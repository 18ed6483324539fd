"""Files of Replicate's API by its official SDK, and the routes of `/v1/files` that it shares with the Gemini API."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import to_thread
from google import genai
from google.genai import types
from pydantic import SecretStr
from replicate.client import Client
from replicate.exceptions import ReplicateError
from replicate.helpers import FileOutput

from broker.sandbox.engine import Options
from tests.support.brokers import RunningBroker, open_broker
from tests.support.samples import encoded

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"
OTHER_KEY = "key-of-another-0123456789"
PICTURE = encoded("PNG")
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningBroker]:
    keys = (SecretStr(KEY), SecretStr(OTHER_KEY))
    options = Options(duration=0.05, creates_per_window=10_000)
    async with open_broker(tmp_path_factory.mktemp("files"), api_keys=keys, options=options) as opened:
        yield opened


@contextmanager
def replicate(broker: RunningBroker, key: str = KEY) -> Iterator[Client]:
    with httpx.HTTPTransport() as transport:
        client = Client(api_token=key, base_url=str(broker.client.base_url), transport=transport)
        client.poll_interval = 0.05
        yield client


async def upload(broker: RunningBroker, name: str = "fox.png") -> dict[str, Any]:
    answer = await broker.client.post("/v1/files", files={"content": (name, PICTURE, "image/png")}, headers=BEARER)
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


async def test_sdk_uploads_shows_lists_and_deletes_a_file(broker: RunningBroker, tmp_path: Path) -> None:
    path = tmp_path / "fox.png"
    path.write_bytes(PICTURE)

    def work(client: Client, other: Client) -> None:
        file = client.files.create(path, metadata={"album": "ä"})
        assert (file.name, file.content_type, file.size) == ("fox.png", "image/png", len(PICTURE))
        assert (file.metadata, file.expires_at is not None) == ({"album": "ä"}, True)
        assert client.files.get(file.id).dict() == file.dict()
        assert [one.dict() for one in client.files.list()] == [file.dict()]
        assert other.files.list() == []
        with pytest.raises(ReplicateError) as raised:
            other.files.get(file.id)
        assert raised.value.status == 404
        assert client.files.delete(file.id)
        with pytest.raises(ReplicateError) as raised:
            client.files.get(file.id)
        assert (raised.value.status, client.files.list()) == (404, [])

    with replicate(broker) as client, replicate(broker, OTHER_KEY) as other:
        await to_thread.run_sync(work, client, other)


async def test_metadata_may_be_a_part_with_a_name_as_the_client_in_node_sends_it(broker: RunningBroker) -> None:
    parts = {
        "content": ("buffer_1", PICTURE, "application/octet-stream"),
        "metadata": ("blob", b'{"album": "x"}', "application/json"),
    }
    answer = await broker.client.post("/v1/files", headers=BEARER, files=parts)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["metadata"], answer.json()["content_type"]) == ({"album": "x"}, "image/png")
    parts["metadata"] = ("blob", b'{"album": "' + b"x" * 2**20 + b'"}', "application/json")
    assert (await broker.client.post("/v1/files", headers=BEARER, files=parts)).status_code == 413
    await broker.client.delete(f"/v1/files/{answer.json()['id']}", headers=BEARER)


async def test_sdk_sends_an_input_that_is_a_file_as_one(broker: RunningBroker) -> None:
    def work(client: Client) -> bytes:
        image = io.BytesIO(PICTURE)
        image.name = "fox.png"
        output = client.run("google/nano-banana", input={"prompt": "a blue fox", "image_input": [image]})
        assert isinstance(output, FileOutput)
        return output.read()

    with replicate(broker) as client:
        assert await to_thread.run_sync(work, client)
    jobs = [job for job in await broker.provider_jobs() if job["request"]["input"]["prompt"] == "a blue fox"]
    assert [len(job["request"]["input"]["image_urls"]) for job in jobs] == [1]
    for file in (await broker.client.get("/v1/files", headers=BEARER)).json()["results"]:
        await broker.client.delete(f"/v1/files/{file['id']}", headers=BEARER)


async def test_shared_routes_serve_the_clients_of_both(broker: RunningBroker) -> None:
    first, second = await upload(broker, "one.png"), await upload(broker, "two.png")

    def by_google() -> list[types.File]:
        options = types.HttpOptions(base_url=str(broker.client.base_url))  # its default version is v1
        with genai.Client(api_key=KEY, http_options=options) as client:
            listed = list(client.files.list(config={"page_size": 1}))
            client.files.delete(name=f"files/{second['id']}")
        return listed

    listed = await to_thread.run_sync(by_google)
    assert [file.name for file in listed] == [f"files/{second['id']}", f"files/{first['id']}"]
    assert [file.display_name for file in listed] == ["two.png", "one.png"]
    plain = (await broker.client.get(f"/v1/files/{first['id']}", headers=BEARER)).json()
    assert plain.items() >= first.items()
    assert (plain["displayName"], plain["uri"].endswith(f"/v1beta/files/{first['id']}")) == ("one.png", True)
    page = (await broker.client.get("/v1/files?pageSize=1", headers=BEARER)).json()
    assert ([file["id"] for file in page["results"]], page["next"]) == ([first["id"]], None)
    deleted = await broker.client.delete(f"/v1/files/{first['id']}", headers=BEARER)
    assert (deleted.status_code, deleted.json()) == (200, {})
    gone = await broker.client.delete(f"/v1/files/{first['id']}", headers=BEARER)
    assert gone.status_code == 404


async def test_pages_of_the_shared_list(broker: RunningBroker) -> None:
    ids = [(await upload(broker, f"{number}.png"))["id"] for number in range(3)]
    found, address = [], "/v1/files?pageSize=2"
    while address:
        page = (await broker.client.get(address, headers=BEARER)).json()
        found += [file["id"] for file in page["results"]]
        assert [file["name"] for file in page["files"]] == [f"files/{file['id']}" for file in page["results"]]
        address = page["next"]
    assert found == ids[::-1]
    wrong = await broker.client.get("/v1/files?pageToken=x", headers={**BEARER, "x-goog-api-key": KEY})
    assert wrong.json()["error"]["status"] == "INVALID_ARGUMENT"


async def test_upload_that_is_refused_says_why(broker: RunningBroker) -> None:
    part = ("fox.png", PICTURE, "image/png")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"files": {"other": part}}, "content must be one file"),
        ({"files": {"content": (None, "text")}}, "content must be one file"),
        ({"files": {"content": ("a.gif", b"GIF89a" + bytes(500))}}, "GIF"),
        ({"files": {"content": part}, "data": {"metadata": "[1]"}}, "metadata must be a JSON object"),
        ({"files": {"content": part, "metadata": ("blob", b"[1]")}}, "metadata must be a JSON object"),
        ({"files": {"content": part, "metadata": ("blob", b"\xff")}}, "not readable JSON"),
        ({"json": {}}, "multipart/form-data"),
    ]
    for request, sentence in wrong:
        answer = await broker.client.post("/v1/files", headers=BEARER, **request)
        assert (answer.status_code, sentence in answer.json()["detail"]) == (400, True), answer.text
    stranger = await broker.client.post("/v1/files", files={"content": part})
    assert stranger.status_code == 401
