"""P12: a stored image of 2 MB served by the broker, and by nginx behind its check, beside nginx alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from anyio import to_thread

from tests.benchmarks.results import Measured, Row, ratio_at_least, value_at_most
from tests.benchmarks.support.bench import Bench, Broker
from tests.benchmarks.support.client import connected
from tests.benchmarks.support.images import noise_image
from tests.benchmarks.support.load import Load, LoadErrors, full_load, http_request, rates, write_requests
from tests.benchmarks.support.machine import nginx_installed
from tests.benchmarks.support.processes import ROOT, Subject, environment, serving
from tests.support.servers.ports import free_port

PATH: Final = "P12"
MEGABYTES: Final = 2
CONNECTIONS: Final = 16
CONFIG: Final = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; user root;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type image/png;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  {server}
}}
"""
ALONE: Final = "server {{ listen 127.0.0.1:{port}; root {root}; location = / {{ return 200; }} }}"
BEHIND_CHECK: Final = """
  upstream brokers {{ server 127.0.0.1:{broker}; keepalive 16; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header X-Forwarded-For $remote_addr;
    location = / {{ return 200; }}
    location / {{ proxy_pass http://brokers; }}
    {images}
  }}
"""
IMAGES_CONFIG: Final = ROOT / "deploy" / "nginx-images.conf"
SECRET_NAME: Final = "0" * 32
ACCEL_VARIABLES: Final = {"BROKER_ACCEL_PREFIX": f"/_images_{SECRET_NAME}/", "BROKER_BLOB_GROUP_READ": "true"}


async def measure(bench: Bench) -> list[Row]:
    folder, image = bench.folder("images"), await to_thread.run_sync(noise_image, bench.cache, MEGABYTES)
    async with bench.provider(image=image) as provider, bench.broker(provider, variables=ACCEL_VARIABLES) as broker:
        task_id = await broker.create()
        await broker.wait_for(task_id, "completed")
        url = _image_url((await broker.get(f"/api/task/{task_id}"))["data"])
        ours = write_requests(folder / "ours", [http_request("GET", url)])
        theirs = write_requests(folder / "theirs", [http_request("GET", f"/{image.name}")])
        load = partial(full_load, broker.subject, ours, bench.options.seconds, connections=CONNECTIONS)
        if nginx_installed():
            async with nginx(folder, image.parent) as alone, nginx_behind_check(folder, broker) as front:
                bare = partial(full_load, alone, theirs, bench.options.seconds, connections=CONNECTIONS)
                checked = partial(_load_behind_check, front, broker.subject, ours, bench.options.seconds)
                loads = await bench.interleave({"nginx": bare, "ours": load, "checked": checked}, warm_up=True)
        else:
            loads = await bench.interleave({"ours": load}, warm_up=True)
        again = await _requests_of_a_repeat_view(broker.subject.port, url)
    reference = rates(loads["nginx"], "nginx") if "nginx" in loads else None
    return [
        Row(
            path=PATH,
            what=f"image of {MEGABYTES} MB",
            reference=reference,
            ours=rates(loads["ours"]),
            goal=ratio_at_least(0.6),
            note="" if reference else "nginx is not installed",
        ),
        Row(
            path=PATH,
            what=f"image of {MEGABYTES} MB, nginx behind the broker's check",
            reference=reference,
            ours=rates(loads["checked"]) if "checked" in loads else None,
            goal=ratio_at_least(0.95),
            note="CPU of nginx and the broker together" if reference else "nginx is not installed",
        ),
        Row(
            path=PATH,
            what="requests of a repeat view",
            ours=Measured(unit="requests", values=(again,)),
            goal=value_at_most(0),
            is_timed=False,
        ),
    ]


async def _load_behind_check(front: Subject, broker: Subject, requests: Path, seconds: float) -> Load:
    """Send requests to nginx; the CPU time of the broker counts, too."""
    before = broker.cpu_seconds()
    load = await full_load(front, requests, seconds, connections=CONNECTIONS)
    if load.bytes < load.count * MEGABYTES * 500_000:
        raise LoadErrors("nginx did not send the image")
    return replace(load, cpu=load.cpu + (broker.cpu_seconds() - before) / load.count)


@asynccontextmanager
async def nginx(folder: Path, root: Path) -> AsyncIterator[Subject]:
    """Run nginx, one worker, with the files of `root`."""
    port = free_port()
    async with _running_nginx(folder / "alone", port, ALONE.format(port=port, root=root)) as subject:
        yield subject


@asynccontextmanager
async def nginx_behind_check(folder: Path, broker: Broker) -> AsyncIterator[Subject]:
    """Run nginx, one worker, in front of a broker, with the configuration of deploy/ for its images."""
    text, port = await to_thread.run_sync(IMAGES_CONFIG.read_text, "utf-8"), free_port()
    images = text.replace("/var/lib/banana/blobs", str(broker.data / "blobs")).replace("RANDOM", SECRET_NAME)
    server = BEHIND_CHECK.format(port=port, broker=broker.subject.port, images=images)
    async with _running_nginx(folder / "front", port, server) as subject:
        yield subject


@asynccontextmanager
async def _running_nginx(folder: Path, port: int, server: str) -> AsyncIterator[Subject]:
    file = folder / "nginx.conf"
    await to_thread.run_sync(folder.mkdir)
    await to_thread.run_sync(file.write_text, CONFIG.format(folder=folder, server=server), "utf-8")
    command = ("nginx", "-c", str(file), "-p", str(folder))
    async with serving(command, port, folder=folder, env=environment()) as subject:
        yield subject


def _image_url(task: dict[str, object]) -> str:
    """Return path and query of the first image, wherever the document has it."""
    found = [value for value in _texts(task) if "/api/images/" in value or "generated_" in value]
    parts = urlsplit(next(value for value in found if "/" in value))
    return parts.path + (f"?{parts.query}" if parts.query else "")


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


async def _requests_of_a_repeat_view(port: int, url: str) -> float:
    """Return 0 if a cache may keep the image without asking again, else 1."""
    async with connected(port) as client:
        client.writer.write(http_request("GET", url))
        async with asyncio.timeout(10):
            head = (await client.reader.readuntil(b"\r\n\r\n")).lower()
    control = head.partition(b"\r\ncache-control:")[2].split(b"\r\n", 1)[0]
    return 0.0 if b"max-age=" in control and b"no-cache" not in control and b"max-age=0" not in control else 1.0
