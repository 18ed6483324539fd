"""The process that writes a SQLite file for `broker serve`, in which it would fight with the event loop for the GIL."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from storage.children.child import ParentMessages, connect_parent
from storage.errors import StorageError
from storage.sql.writer.group_writer import GroupWriter
from storage.sql.writer.groups import Group
from storage.sql.writer.messages import CLOSE, Opening, decode_group, encode_opened, encode_report


def main() -> None:
    parent = connect_parent()
    # a restarted broker writes, too: two processes that write and copy the log can damage the database
    parent.end_with_parent()
    first = parent.receive()
    if not first:
        return
    opening = Opening.decode(first)
    writer = GroupWriter(Path(opening.path), spends_reserve=opening.spends_reserve)
    try:
        opened = writer.open(opening.known, opening.setup)
    except (StorageError, OSError, sqlite3.Error) as error:
        parent.send(encode_opened(error))
        return
    parent.send(encode_opened(opened))
    _serve(parent, writer)


def _serve(parent: ParentMessages, writer: GroupWriter) -> None:
    """Write until the parent closes the database, or is gone."""

    def receive(seconds: float | None) -> Group | None:
        message = parent.receive(seconds)
        if message is None:
            os._exit(1)  # without closing the connection, which copies the log into the database
        return None if message == CLOSE else decode_group(message)

    writer.run(receive, lambda report: parent.send(encode_report(report)))
    writer.close()


main()
