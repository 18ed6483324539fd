"""A child process for tests: does what its messages say."""

from __future__ import annotations

import os
import sys
import time

from storage.children.child import connect_parent


def main() -> None:
    parent = connect_parent()
    while (message := parent.receive()) is not None:
        match message.split(b" "):
            case [b"environment"]:
                parent.send("\n".join(f"{name}={value}" for name, value in os.environ.items()).encode())
            case [b"path"]:
                parent.send("\n".join(sys.path).encode())
            case [b"end"]:
                return
            case [b"sleep", seconds]:
                time.sleep(float(seconds))
            case [b"wait", seconds]:
                try:
                    parent.send(parent.receive(float(seconds)) or b"the end")
                except TimeoutError:
                    parent.send(b"nothing came")
            case _:
                parent.send(b"again: ", message)
    parent.send(b"the end")


if __name__ == "__main__":
    main()
