"""The reference D: raw sockets in threads that fetch files to disk.

`python -m tests.benchmarks.support.raw_download PORT COUNT FOLDER` prints MB per second.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

PIECE = 2**18


def fetch(port: int, number: int, folder: Path, sizes: list[int]) -> None:
    buffer = memoryview(bytearray(PIECE))
    with socket.create_connection(("127.0.0.1", port)) as connection, (folder / f"{number}").open("wb", 0) as file:
        connection.sendall(f"GET /image/{number}.png HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        head, _, body = head.partition(b"\r\n\r\n")
        left = size = int(head.lower().partition(b"\r\ncontent-length:")[2].split(b"\r\n", 1)[0])
        file.write(body)
        left -= len(body)
        while left:
            received = connection.recv_into(buffer)
            if not received:
                raise ConnectionError("the file was cut off")
            file.write(buffer[:received])
            left -= received
    sizes.append(size)


def main(port: str, count: str, folder: str) -> None:
    sizes: list[int] = []
    threads = [threading.Thread(target=fetch, args=(int(port), n, Path(folder), sizes)) for n in range(int(count))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(sizes) != int(count):
        raise SystemExit("a download failed")
    sys.stdout.write(f"{sum(sizes) / (time.perf_counter() - began) / 1e6}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
