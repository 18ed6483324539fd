"""Images that a real nginx sends with the configuration of deploy/nginx-images.conf, where nginx is installed."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from storage.ids import new_task_id
from tests.deployment.compose import DEPLOY
from tests.support.api import ApiBroker, open_api
from tests.support.servers.ports import answers, free_port

PROGRAM = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(PROGRAM is None, reason="nginx is not installed")]

IMAGES = (DEPLOY / "nginx-images.conf").read_text("utf-8")
CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; user {user};
events {{ worker_connections 64; }}
http {{
  log_format sent '$status $upstream_response_length';
  access_log {folder}/access.log sent;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream brokers {{ server 127.0.0.1:{broker}; keepalive 4; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    location / {{ proxy_pass http://brokers; }}
    {images}
  }}
}}
"""
DATA = bytes(range(256)) * 40
SIZE = len(DATA)
RANDOM = "5e" * 16
PREFIX = f"/_images_{RANDOM}/"
OWNER = new_task_id(1.8e9)
ORIGIN = "https://app.example.com"


@dataclass(frozen=True)
class Front:
    """nginx in front of a broker. client: for nginx."""

    broker: ApiBroker
    client: httpx.AsyncClient
    folder: Path

    def upstream_bytes(self) -> str:
        """Return how many bytes of a body the broker sent for the last request; of several tries, each."""
        return (self.folder / "access.log").read_text("utf-8").splitlines()[-1].partition(" ")[2]


@asynccontextmanager
async def nginx_before_broker(tmp_path: Path, user: str = "root") -> AsyncIterator[Front]:
    """Run a broker, and nginx with the configuration of deploy/ in front of it."""
    settings: dict[str, Any] = {"accel_prefix": PREFIX, "blob_group_read": True, "cors_origins": ORIGIN}
    folder, port = tmp_path / "nginx", free_port()
    folder.mkdir()
    async with open_api(tmp_path / "broker", sockets=True, **settings) as broker:
        blobs = broker.services.settings.blob_folder
        images = IMAGES.replace("/var/lib/banana/blobs", str(blobs)).replace("RANDOM", RANDOM)
        text = CONFIG.format(folder=folder, port=port, broker=broker.port, images=images, user=user)
        (folder / "nginx.conf").write_text(text, "utf-8")
        process = await asyncio.create_subprocess_exec(
            PROGRAM or "", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")
        )
        try:
            await answers(port)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, verify=False) as client:
                yield Front(broker, client, folder)
        finally:
            process.terminate()
            await process.wait()


async def test_nginx_sends_the_image_with_the_headers_of_the_broker(tmp_path: Path) -> None:
    async with nginx_before_broker(tmp_path) as front:
        image = await front.broker.add_image(OWNER, DATA)
        path, headers = f"/uploads/images/{image.name}", {"Origin": ORIGIN, "X-Request-ID": "ours"}
        direct = await front.broker.client.get(path, headers=headers)
        answer = await front.client.get(path, headers=headers)
        assert (answer.status_code, answer.content) == (200, DATA)
        assert front.upstream_bytes() == "0"
        without = {"date", "server", "connection", "keep-alive"}
        assert {n: v for n, v in answer.headers.items() if n not in without} == {
            n: v for n, v in direct.headers.items() if n not in without
        }


async def test_a_part_of_an_image_is_sent_by_nginx(tmp_path: Path) -> None:
    async with nginx_before_broker(tmp_path) as front:
        image = await front.broker.add_image(OWNER, DATA)
        path, tag = f"/uploads/images/{image.name}", f'"{image.sha256}"'
        cases: list[tuple[dict[str, str], int, slice]] = [
            ({"Range": "bytes=0-0"}, 206, slice(0, 1)),
            ({"Range": "bytes=100-"}, 206, slice(100, SIZE)),
            ({"Range": "bytes=-100"}, 206, slice(SIZE - 100, SIZE)),
            ({"Range": "bytes=5-99999999"}, 206, slice(5, SIZE)),
            ({"Range": "bytes=0-1,4-5"}, 200, slice(0, SIZE)),
            ({"Range": "items=0-1"}, 200, slice(0, SIZE)),
            ({"Range": "bytes=0-1", "If-Range": tag}, 206, slice(0, 2)),
            ({"Range": "bytes=0-1", "If-Range": '"other"'}, 200, slice(0, SIZE)),
            ({"Range": "bytes=0-1", "If-Range": "Thu, 01 Jan 1970 00:00:00 GMT"}, 200, slice(0, SIZE)),
        ]
        for headers, status, part in cases:
            answer = await front.client.get(path, headers=headers)
            assert (answer.status_code, answer.content) == (status, DATA[part]), headers
            found = f"bytes {part.start}-{part.stop - 1}/{SIZE}" if status == 206 else None
            assert (answer.headers.get("content-range"), answer.headers["etag"]) == (found, tag), headers
            assert front.upstream_bytes() == "0", headers


async def test_conditions_and_head_have_the_answers_of_the_broker(tmp_path: Path) -> None:
    async with nginx_before_broker(tmp_path) as front:
        image = await front.broker.add_image(OWNER, DATA)
        path = f"/uploads/images/{image.name}"
        same = await front.client.get(path, headers={"If-None-Match": f'"{image.sha256}"'})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", f'"{image.sha256}"')
        none = await front.client.get(path, headers={"Range": f"bytes={SIZE}-"})
        assert (none.status_code, none.headers["content-range"]) == (416, f"bytes */{SIZE}")
        head = await front.client.head(path)
        assert (head.status_code, head.headers["content-length"]) == (200, str(SIZE))
        long_ago, ahead = "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 2099 00:00:00 GMT"
        for name, value in (
            ("If-None-Match", '"other"'),
            ("If-Modified-Since", ahead),
            ("If-Unmodified-Since", long_ago),
            ("If-Match", '"other"'),
        ):
            answer = await front.client.get(path, headers={name: value})
            assert (answer.status_code, answer.content) == (200, DATA), name


async def test_only_the_broker_leads_to_the_folder(tmp_path: Path) -> None:
    """The internal location cannot be requested, and headers of a client change nothing."""
    async with nginx_before_broker(tmp_path) as front:
        image = await front.broker.add_image(OWNER, DATA)
        below = front.broker.services.blobs.path_below_root(image.blob)
        for path in (f"{PREFIX}{below}", PREFIX, f"{PREFIX}../broker.db", f"{PREFIX}%2e%2e/broker.db"):
            assert (await front.client.get(path)).status_code == 404, path
        answer = await front.client.get(f"/uploads/images/{'0' * 42}.png")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        hostile = {
            "X-Accel-Prefix": "/etc/",
            "X-Accel-Redirect": "/etc/passwd",
            "X-Accel-Mapping": "/=/etc/",
            "X-Sendfile-Type": "X-Sendfile",
        }
        answer = await front.client.get(f"/uploads/images/{image.name}", headers=hostile)
        assert (answer.status_code, answer.content, front.upstream_bytes()) == (200, DATA, "0")
        assert [name for name in answer.headers if name.startswith("x-accel")] == []


async def test_missing_file_is_answered_by_the_broker(tmp_path: Path) -> None:
    async with nginx_before_broker(tmp_path) as front:
        image = await front.broker.add_image(OWNER, DATA)
        await front.broker.services.blobs.delete(OWNER)
        answer = await front.client.get(f"/uploads/images/{image.name}?size=")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert "no-store" in answer.headers["cache-control"]


@pytest.mark.skipif(os.geteuid() != 0, reason="nginx runs as the user of the test, who can read its files")
async def test_file_that_nginx_may_not_read_is_sent_by_the_broker(tmp_path: Path) -> None:
    """An image from before BROKER_BLOB_GROUP_READ."""
    nobody = pwd.getpwnam("nobody")
    async with nginx_before_broker(tmp_path, user=f"nobody {grp.getgrgid(nobody.pw_gid).gr_name}") as front:
        image = await front.broker.add_image(OWNER, DATA)
        answer = await front.client.get(f"/uploads/images/{image.name}", headers={"Range": "bytes=0-9"})
        assert (answer.status_code, answer.content) == (206, DATA[:10])
        assert answer.headers["content-disposition"] == f'inline; filename="{image.name}"'
        assert front.upstream_bytes() == "0 : 10"
