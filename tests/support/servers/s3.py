"""A real S3 server in a process of its own, which ends with the tests."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Port 0 excludes a race for the port. The end of stdin comes even if the tests are killed."""


@dataclass(frozen=True)
class S3Server:
    """A running server; it accepts every key and keeps everything in memory."""

    url: str

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(8)}"
        httpx.put(f"{self.url}/{name}", verify=False).raise_for_status()
        return name

    def keys(self, bucket: str) -> Iterator[str]:
        """Return all keys of a bucket."""
        after = ""
        while True:
            page = httpx.get(f"{self.url}/{bucket}", params={"list-type": "2", "start-after": after}, verify=False).text
            found = re.findall(r"<Key>([^<]*)</Key>", page)
            yield from found
            if "<IsTruncated>true</IsTruncated>" not in page:
                return
            after = found[-1]


@contextmanager
def serving_s3() -> Iterator[S3Server]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()
