"""nginx in front of several brokers, as deploy/nginx.conf has it, where it is installed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.servers.ports import answers

CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; user root;
events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream brokers {{ {servers} keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://brokers; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header X-Forwarded-For $remote_addr; proxy_buffering off; proxy_read_timeout 65s;
    }}
  }}
}}
"""


def installed() -> bool:
    return shutil.which("nginx") is not None


@asynccontextmanager
async def balancing(port: int, ports: Sequence[int]) -> AsyncIterator[str]:
    """Run nginx over `ports`, in turn; yield its base URL."""
    with tempfile.TemporaryDirectory(prefix="nginx-") as name:
        folder = Path(name)
        servers = " ".join(f"server 127.0.0.1:{one} max_fails=1 fail_timeout=1s;" for one in ports)
        (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, servers=servers, port=port))
        process = await asyncio.create_subprocess_exec(
            "nginx", "-c", str(folder / "nginx.conf"), "-p", name, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            await answers(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()
