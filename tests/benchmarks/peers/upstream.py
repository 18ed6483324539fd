"""A mock of OpenAI's image route: `python -m tests.benchmarks.peers.upstream PORT`."""

from __future__ import annotations

import asyncio
import sys

import uvloop

from tests.benchmarks.support.provider import Http, http_response

IMAGE = http_response(
    b'{"created":1700000000,"data":[{"url":"http://127.0.0.1/image.png"}],'
    b'"usage":{"input_tokens":10,"output_tokens":10,"total_tokens":20}}'
)


class Upstream(Http):
    """A connection; every request gets the same image."""

    def message_received(self, head: bytes, body: bytes) -> None:
        self.transport.write(IMAGE)
        if b"\r\nconnection: close" in head.lower():
            self.transport.close()


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
