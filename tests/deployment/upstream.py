"""A small HTTP server in place of a broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar


class Upstream(BaseHTTPRequestHandler):
    """A broker that records each request and answers it, or hangs up without a response."""

    requests: ClassVar[list[dict[str, str]]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._record()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self._record()

    def _record(self) -> None:
        self.requests.append({name.lower(): value for name, value in self.headers.items()})
        if self.path != "/hang-up":
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Unready(Upstream):
    """A broker that is not ready."""

    def do_GET(self) -> None:
        self.send_error(503)


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
