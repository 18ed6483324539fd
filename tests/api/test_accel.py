"""Images that nginx sends for the broker: which requests are answered with `X-Accel-Redirect`, and with which path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.ids import new_task_id
from tests.support.api import ApiBroker, open_api, png

pytestmark = pytest.mark.anyio

OWNER = new_task_id(1.8e9)
PREFIX = f"/_images_{'5e' * 16}/"
SETTINGS: dict[str, Any] = {"accel_prefix": PREFIX, "blob_group_read": True}
FROM_NGINX = {"X-Accel-Prefix": PREFIX, "X-Forwarded-For": "8.8.8.8"}
DATA = bytes(range(256)) * 40
REDIRECT = "x-accel-redirect"


async def get(broker: ApiBroker, path: str, *, peer: str = "127.0.0.1", headers: Any = FROM_NGINX) -> httpx.Response:
    """Send a GET request from an address."""
    transport = httpx.ASGITransport(broker.mounted, client=(peer, 50_000))
    async with httpx.AsyncClient(base_url="http://127.0.0.1:8000", transport=transport) as client:
        return await client.get(path, headers=headers)


async def test_nginx_gets_the_headers_of_an_image_and_its_path_below_the_folder(tmp_path: Path) -> None:
    async with open_api(tmp_path, **SETTINGS) as broker:
        image = await broker.add_image(OWNER, DATA)
        direct = await broker.client.get(f"/uploads/images/{image.name}")
        answer = await get(broker, f"/uploads/images/{image.name}")
        assert (direct.content, direct.headers.get(REDIRECT)) == (DATA, None)
        assert (answer.status_code, answer.content) == (200, b"")
        path = answer.headers[REDIRECT].removeprefix(PREFIX)
        assert (broker.services.settings.blob_folder / path).read_bytes() == DATA
        changed = {"content-length", "x-request-id", "accept-ranges", REDIRECT}
        kept = {name: value for name, value in direct.headers.items() if name not in changed}
        assert kept.items() <= answer.headers.items()


async def test_reference_and_thumbnail_are_sent_by_nginx(tmp_path: Path) -> None:
    async with open_api(tmp_path, **SETTINGS) as broker:
        image = await broker.add_image(OWNER, png())
        reference = await broker.add_image(OWNER, png("red"), kind="reference")
        for path in (f"/uploads/images/{image.name}?size=128", f"/uploads/references/{reference.name}"):
            answer = await get(broker, path)
            sent = broker.services.settings.blob_folder / answer.headers[REDIRECT].removeprefix(PREFIX)
            assert sent.read_bytes() == (await broker.client.get(path)).content, path


NOT_FROM_NGINX: dict[str, tuple[str, Any]] = {
    "direct": ("127.0.0.1", {}),
    "direct, with nginx's header": ("127.0.0.1", {"X-Accel-Prefix": PREFIX}),
    "another proxy": ("127.0.0.1", {"X-Forwarded-For": "8.8.8.8"}),
    "public peer": ("8.8.8.8", FROM_NGINX),
    "another location": ("127.0.0.1", {**FROM_NGINX, "X-Accel-Prefix": "/etc/"}),
    "part of the location": ("127.0.0.1", {**FROM_NGINX, "X-Accel-Prefix": PREFIX[:-1]}),
    "no text": ("127.0.0.1", {**FROM_NGINX, "X-Accel-Prefix": b"\xff"}),
    "two locations": ("127.0.0.1", [*FROM_NGINX.items(), ("X-Accel-Prefix", PREFIX)]),
    "if-match": ("127.0.0.1", {**FROM_NGINX, "If-Match": '"x"'}),
    "if-unmodified-since": ("127.0.0.1", {**FROM_NGINX, "If-Unmodified-Since": "Thu, 01 Jan 1970 00:00:00 GMT"}),
}


@pytest.mark.parametrize(("peer", "headers"), NOT_FROM_NGINX.values(), ids=NOT_FROM_NGINX)
async def test_other_clients_get_the_bytes(tmp_path: Path, peer: str, headers: Any) -> None:
    async with open_api(tmp_path, **SETTINGS) as broker:
        image = await broker.add_image(OWNER, DATA)
        answer = await get(broker, f"/uploads/images/{image.name}", peer=peer, headers=headers)
        assert (answer.status_code, answer.content) == (200, DATA)
        assert REDIRECT not in answer.headers


async def test_without_the_setting_every_client_gets_the_bytes(tmp_path: Path) -> None:
    async with open_api(tmp_path, blob_group_read=True) as broker:
        image = await broker.add_image(OWNER, DATA)
        for prefix in ("", PREFIX):
            answer = await get(
                broker, f"/uploads/images/{image.name}", headers={**FROM_NGINX, "X-Accel-Prefix": prefix}
            )
            assert (answer.content, answer.headers.get(REDIRECT)) == (DATA, None)


async def test_headers_of_a_request_do_not_change_the_path(tmp_path: Path) -> None:
    """Other servers take a path, or a part of it, from these."""
    hostile = {
        "X-Accel-Redirect": "/etc/passwd",
        "X-Accel-Mapping": "/=/etc/",
        "X-Sendfile-Type": "X-Sendfile",
        "X-Forwarded-Prefix": "/etc",
        "X-Original-URL": "/etc/passwd",
    }
    async with open_api(tmp_path, **SETTINGS) as broker:
        image = await broker.add_image(OWNER, DATA)
        path = f"/uploads/images/{image.name}"
        plain = await get(broker, path)
        assert (await get(broker, path, headers={**FROM_NGINX, **hostile})).headers[REDIRECT] == (
            plain.headers[REDIRECT]
        )


@pytest.mark.parametrize("blob", ["../secret.key", "task_1/../../secret.key", f"task_1/{'0' * 63}/", "/etc/passwd", ""])
async def test_row_with_the_name_of_no_blob_is_not_found(tmp_path: Path, blob: str) -> None:
    async with open_api(tmp_path, **SETTINGS) as broker:
        image = await broker.add_image(OWNER, DATA)
        await broker.services.database.execute("UPDATE images SET blob = :blob", blob=blob)
        answer = await get(broker, f"/uploads/images/{image.name}")
        assert (answer.status_code, answer.headers.get(REDIRECT)) == (404, None)


async def test_responses_without_a_file_are_the_broker_s_own(tmp_path: Path) -> None:
    async with open_api(tmp_path, **SETTINGS) as broker:
        image = await broker.add_image(OWNER, DATA)
        path = f"/uploads/images/{image.name}"
        head = await broker.client.head(path, headers=FROM_NGINX)
        same = await get(broker, path, headers={**FROM_NGINX, "If-None-Match": f'"{image.sha256}"'})
        none = await get(broker, path, headers={**FROM_NGINX, "Range": f"bytes={len(DATA)}-"})
        missing = await get(broker, path.replace(".png", ".jpg"))
        assert [one.status_code for one in (head, same, none, missing)] == [200, 304, 416, 404]
        assert all(REDIRECT not in one.headers for one in (head, same, none, missing))
        assert head.headers["content-length"] == str(len(DATA))
