"""Images by name: exact bytes of a fixed media type that browsers do not show as a page."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from broker.clock import iso
from storage.images import StoredImage
from storage.states import TaskState
from tests.support.api import ApiBroker, open_api, png
from tests.support.servers.s3 import S3Server

pytestmark = pytest.mark.anyio

OWNER = "task_" + "1" * 43
DATA = bytes(range(256)) * 40  # 10 240 bytes; the route does not read them
FORWARDED = {"X-Forwarded-For": "8.8.8.8"}


async def test_image_has_all_security_headers(tmp_path: Path) -> None:
    """Public by name, and cached by browsers until its retention ends."""
    async with open_api(tmp_path, retention_hours=2) as broker:
        image = await broker.add_image(OWNER, DATA)
        for method in ("GET", "HEAD"):
            answer = await broker.client.request(method, f"/uploads/images/{image.name}", headers=FORWARDED)
            assert answer.status_code == 200
            assert answer.content == (DATA if method == "GET" else b"")
            assert answer.headers["content-type"] == "image/png"
            assert answer.headers["content-length"] == str(len(DATA))
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["content-disposition"] == f'inline; filename="{image.name}"'
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["etag"] == f'"{hashlib.sha256(DATA).hexdigest()}"'
            match = re.fullmatch(r"private, max-age=([0-9]+), immutable", answer.headers["cache-control"])
            assert match is not None
            assert 7190 <= int(match[1]) <= 7200


async def test_image_past_its_retention_is_not_cached(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await broker.add_image(OWNER, DATA)
        await broker.services.database.execute("UPDATE images SET created_at = 1.0")
        answer = await broker.client.get(f"/uploads/images/{image.name}")
        assert answer.headers["cache-control"] == "private, no-cache"


async def test_matching_etag_is_answered_with_304(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await broker.add_image(OWNER, DATA)
        path, tag = f"/uploads/images/{image.name}", f'"{image.sha256}"'
        for offered in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            answer = await broker.client.get(path, headers={"If-None-Match": offered, "Range": "bytes=0-1"})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
            assert answer.headers["content-security-policy"]
        assert (await broker.client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200


SIZE = len(DATA)


RANGES: list[tuple[str, int, tuple[int, int] | None]] = [
    ("bytes=0-0", 206, (0, 1)),
    ("bytes=0-99", 206, (0, 100)),
    ("bytes=100-", 206, (100, SIZE)),
    ("bytes=-100", 206, (SIZE - 100, SIZE)),
    (f"bytes={SIZE - 1}-", 206, (SIZE - 1, SIZE)),
    ("bytes=5-99999999", 206, (5, SIZE)),
    ("bytes= 5 - 9", 206, (5, 10)),
    ("bytes=-99999999", 200, (0, SIZE)),
    ("bytes=0-", 200, (0, SIZE)),
    (f"bytes=0-{SIZE - 1}", 200, (0, SIZE)),
    ("bytes=0-1,4-5", 200, (0, SIZE)),
    ("bytes=" + "0-1," * 500 + "0-1", 200, (0, SIZE)),
    ("items=0-1", 200, (0, SIZE)),
    ("junk", 200, (0, SIZE)),
    (f"bytes={SIZE}-", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=9-5", 416, None),
    ("bytes=-", 416, None),
    ("bytes=", 416, None),
    ("bytes=a-b", 416, None),
    ("bytes=0x1-2", 416, None),
    ("bytes=--1", 416, None),
    ("bytes=" + "9" * 5000 + "-", 416, None),
]


async def test_single_range_is_served(tmp_path: Path) -> None:
    """One range is served, several are the whole, and an unsatisfiable range is answered with the size."""
    async with open_api(tmp_path) as broker:
        image = await broker.add_image(OWNER, DATA)
        for header, status, part in RANGES:
            answer = await broker.client.get(f"/uploads/images/{image.name}", headers={"Range": header})
            assert answer.status_code == status, header
            content_range = answer.headers.get("content-range")
            if part is None:
                assert (answer.content, content_range) == (b"", f"bytes */{SIZE}"), header
            else:
                assert answer.content == DATA[slice(*part)], header
                assert content_range == (f"bytes {part[0]}-{part[1] - 1}/{SIZE}" if status == 206 else None), header


async def test_head_request_ignores_ranges(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED)
        image = await broker.add_image(task.id, DATA)
        answer = await broker.client.head(f"/uploads/images/{image.name}", headers={"Range": "bytes=0-9"})
        assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(DATA)))


async def test_range_of_another_version_returns_the_whole_image(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await broker.add_image(OWNER, DATA)
        path = f"/uploads/images/{image.name}"
        same = {"Range": "bytes=0-1", "If-Range": f'"{image.sha256}"'}
        assert (await broker.client.get(path, headers=same)).status_code == 206
        assert (await broker.client.get(path, headers={**same, "If-Range": '"other"'})).status_code == 200


async def test_unknown_name_is_not_found(tmp_path: Path) -> None:
    """Paths out of the folder, a result under the path of references, and names without a row."""
    async with open_api(tmp_path) as broker:
        result = await broker.add_image(OWNER, png())
        reference = await broker.add_image(OWNER, png("red"), kind="reference")
        wrong = [
            f"/uploads/references/{result.name}",
            f"/uploads/images/{reference.name}",
            f"/uploads/images/{result.name}.html",
            f"/uploads/images/{result.name.replace('.png', '.jpg')}",
            f"/uploads/images/{result.name.upper()}",
            f"/uploads/images/{result.name}%0a",
            f"/uploads/images/{result.name}%00",
            f"/uploads/images/generated_{'0' * 43}.png",
            f"/uploads/images/{result.blob}",
            "/uploads/images/",
            "/uploads/images/..%2f..%2fbroker.db",
            "/uploads/images/%2e%2e/%2e%2e/secret.key",
            "/uploads/images/%ff.png",
            "/uploads/images/" + "x" * 5000,
            "/uploads/",
        ]
        for path in wrong:
            answer = await broker.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        assert (await broker.client.get(f"/uploads/references/{reference.name}")).content == png("red")


async def test_row_without_bytes_is_not_found(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        image = await broker.add_image(OWNER, DATA)
        await broker.services.blobs.delete(OWNER)
        for method in ("GET", "HEAD"):
            assert (await broker.client.request(method, f"/uploads/images/{image.name}")).status_code == 404


async def test_unknown_media_type_is_served_as_octet_stream(tmp_path: Path) -> None:
    """An image whose row has text/html would be a download, not a page."""
    async with open_api(tmp_path) as broker:
        image = await broker.add_image(OWNER, b"<script>alert(1)</script>")
        await broker.services.database.execute("UPDATE images SET media_type = 'text/html'")
        answer = await broker.client.get(f"/uploads/images/{image.name}")
        assert answer.headers["content-type"] == "application/octet-stream"


async def test_image_deleted_during_a_download_is_sent_completely(tmp_path: Path) -> None:
    """A client that disconnects does not disturb the others."""
    large = b"0123456789abcdef" * 2**18  # 4 MiB, more than any buffer on the way
    async with open_api(tmp_path, sockets=True) as broker:
        image = await broker.add_image(OWNER, large)
        path = f"/uploads/images/{image.name}"
        async with contextlib.AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(broker.client.stream("GET", path)) for _ in range(3)]
            await streams[0].aclose()
            await broker.services.blobs.delete(OWNER)
            assert (await broker.client.get(path)).status_code == 404
            whole = await asyncio.gather(*(stream.aread() for stream in streams[1:]))
        assert [hashlib.sha256(data).hexdigest() for data in whole] == [image.sha256] * 2


async def test_result_in_a_bucket_is_redirected_if_links_are_enabled(tmp_path: Path, s3_server: S3Server) -> None:
    """The link is valid for ten minutes. References are not redirected: a provider may not follow a redirect."""
    bucket: dict[str, Any] = {
        "blob_url": f"s3://{s3_server.new_bucket()}/images",
        "s3_endpoint": s3_server.url,
        "s3_access_key": "test",
        "s3_secret_key": "test",
        "blob_links": "presigned",
    }
    async with open_api(tmp_path, **bucket) as broker:
        image = await broker.add_image(OWNER, DATA)
        answer = await broker.client.get(f"/uploads/images/{image.name}")
        assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, max-age=300")
        assert answer.headers["x-content-type-options"] == "nosniff"
        async with httpx.AsyncClient() as anybody:
            assert (await anybody.get(answer.headers["location"])).content == DATA
        reference = await broker.add_image(OWNER, DATA, kind="reference")
        answer = await broker.client.get(f"/uploads/references/{reference.name}")
        assert (answer.status_code, answer.content) == (200, DATA)


# -- what is known of an image beside its bytes


async def get_metadata(broker: ApiBroker, image: StoredImage, **headers: str) -> httpx.Response:
    folder = "references" if image.kind == "reference" else "images"
    return await broker.client.get(f"/uploads/{folder}/{image.name}.json", headers=headers)


async def test_metadata_names_the_tasks_of_an_image(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(
            state=TaskState.SUCCEEDED, ended_at=1_790_000_000.0, aspect_ratio="1:1", resolution="2K", params={"seed": 7}
        )
        image = await broker.add_image(task.id, DATA)
        answer = await get_metadata(broker, image)
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert answer.json() == {
            "success": True,
            "data": {
                "name": image.name,
                "url": f"/uploads/images/{image.name}",
                "width": 4,
                "height": 4,
                "bytes": len(DATA),
                "mediaType": "image/png",
                "sha256": image.sha256,
                "thumbnail": f"/uploads/images/{image.name}?size=512",
                "kind": "result",
                "task": task.id,
                "tasks": [task.id],
                "prompt": "a banana",
                "model": "nano-banana",
                "mode": "text-to-image",
                "aspectRatio": "1:1",
                "resolution": "2K",
                "steps": None,
                "seed": 7,
                "provider": "kie",
                "createdAt": iso(image.created_at),
                "expiresAt": "2026-09-22T14:13:20.000Z",
            },
        }


async def test_metadata_of_a_reference_names_all_tasks_of_its_request(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        batch = f"batch_{1:043x}"
        first, second, third = [await broker.add_task(number=number, batch=batch) for number in (1, 2, 3)]
        image = await broker.add_image(batch.replace("batch_", "refs_"), DATA, kind="reference")
        data = (await get_metadata(broker, image)).json()["data"]
        assert (data["tasks"], data["expiresAt"]) == ([first.id, second.id, third.id], None)
        assert (data["kind"], data["url"]) == ("reference", f"/uploads/references/{image.name}")
        await broker.change_task(first, state=TaskState.EXPIRED, prompt="", ended_at=1.0)
        await broker.change_task(second, state=TaskState.FAILED, ended_at=1_790_000_000.0)
        await broker.change_task(third, state=TaskState.FAILED, ended_at=1_790_000_060.0)
        data = (await get_metadata(broker, image)).json()["data"]
        assert (data["task"], data["tasks"]) == (second.id, [second.id, third.id])
        assert (data["prompt"], data["expiresAt"]) == ("a banana", "2026-09-22T14:14:20.000Z")


async def test_metadata_needs_a_key(tmp_path: Path) -> None:
    """Image URLs are shared with others; prompts are not."""
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=1.0, prompt="a secret prompt")
        image = await broker.add_image(task.id, DATA)
        answer = await get_metadata(broker, image, **FORWARDED)
        assert (answer.status_code, "secret" in answer.text) == (401, False)
        assert "secret" in (await get_metadata(broker, image)).text


async def test_metadata_of_an_unknown_image_is_not_found(tmp_path: Path) -> None:
    async with open_api(tmp_path) as broker:
        task = await broker.add_task(state=TaskState.SUCCEEDED, ended_at=1.0)
        result = await broker.add_image(task.id, DATA)
        for path in (
            f"/uploads/references/{result.name}.json",
            f"/uploads/images/{result.name}.json.json",
            f"/uploads/images/{result.name}x.json",
            f"/uploads/images/generated_{'0' * 43}.png.json",
            "/uploads/images/.json",
            "/uploads/images/%2e%2e%2fbroker.json",
        ):
            answer = await broker.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
        await broker.change_task(task, state=TaskState.EXPIRED, prompt="")
        assert (await get_metadata(broker, result)).status_code == 404
