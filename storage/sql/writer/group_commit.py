"""Writes of an event loop to a SQLite file: those that wait at the same time are handed to the writer as one group.

The next group is handed over when the one before is done. If the process of the writer ends, it is unknown whether the
group that it had is stored; the writes that wait are written by a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final, NamedTuple

from storage.errors import StorageError
from storage.sql.database import Outcome, Statement
from storage.sql.row_changes import ChangedRows, GroupCounts
from storage.sql.writer.groups import PlainOutcome, Report
from storage.sql.writer.hosts import WriterHost
from storage.sql.writer.opened_files import FileIdentity, OpenedFiles

MAX_WRITES_PER_COMMIT: Final = 256
"""Others wait for the next group."""
WRITES_OF_A_HALF_TURN: Final = 24
"""Handed over at once if the writer is idle, which works then while the loop does the rest of a long turn."""
LOST: Final = (
    "the process that writes the database has ended, and it is unknown whether this was stored: look before you try "
    "again, and into the kernel's log, which says whether memory was exhausted"
)

_ONE_ROW: Final = Outcome(count=1)
"""Of nearly all statements."""
_statements_of: Final = attrgetter("statements")


class Submitted(NamedTuple):
    """One transaction to be written.

    done: its outcomes. wake: channels that are notified before `done` is set.
    """

    statements: Sequence[Statement]
    done: asyncio.Future[list[Outcome]]
    wake: Sequence[str]


class GroupCommitWriter:
    """The part of the writer in the event loop. Use `await open()` and `await close()` in one loop.

    host: of the writer. on_changes: called with the rows that a group has changed, before the writes of the group are
    done. on_loss: called when the writer has ended unasked. notify: notifies channels.
    """

    def __init__(
        self,
        host: WriterHost,
        *,
        on_changes: Callable[[ChangedRows], None] = lambda _: None,
        on_loss: Callable[[], None] = lambda: None,
        notify: Callable[..., None] = lambda *_: None,
    ) -> None:
        self._host = host
        self._on_changes = on_changes
        self._on_loss = on_loss
        self._notify = notify
        self.counts = GroupCounts()
        self._known: Mapping[str, FileIdentity] | None = None
        """Identities of the files that were opened first."""
        self._setup: list[str] = []
        self._refusal: StorageError | None = None
        self._submitted: list[Submitted] = []
        self._group: Sequence[Submitted] = ()
        """What the writer has been handed, and has not reported."""
        self._is_running = False
        self._is_writing = False
        self._unfinished = 0
        self._starting: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start the writer. Raises what `WriterHost.start` raises."""
        self._loop = asyncio.get_running_loop()
        await self._start_host()

    async def install(self, statements: Sequence[str]) -> None:
        """Run statements for the connection itself, which each later connection runs, too."""
        self._setup += statements
        await self.submit([Statement(sql=sql) for sql in statements])

    def refuse(self, error: StorageError) -> None:
        """Fail all writes from now on."""
        self._refusal = error

    def check_files(self) -> None:
        """Raise `DatabaseReplaced` if database or log are no longer the opened ones, or why writes are refused."""
        if self._refusal is not None:
            raise self._refusal
        OpenedFiles(self._known or {}).check()

    def submit(self, statements: Sequence[Statement], wake: Sequence[str] = ()) -> asyncio.Future[list[Outcome]]:
        """Hand in a transaction. The write goes on when the caller stops waiting, and cancels the future.

        wake: channels to be notified after the commit.
        """
        done: asyncio.Future[list[Outcome]] = self._loop.create_future()
        if not self._submitted and not self._is_writing:  # one group of the writes of one turn of the loop
            self._loop.call_soon(self._start_group)
        self._submitted.append(Submitted(statements, done, wake))
        self._unfinished += 1
        if len(self._submitted) >= WRITES_OF_A_HALF_TURN:
            self._start_group()
        return done

    async def flush(self) -> None:
        """Wait until all that was handed in so far is written or has failed."""
        if self._unfinished and not self._loop.is_closed():  # with its callers
            last = self.submit(())  # in the queue
            last.add_done_callback(_ignore_error)
            await asyncio.wait({last})

    async def close(self) -> None:
        """Write all that was handed in, then end the writer."""
        try:
            await self.flush()
        finally:
            await self._host.stop()

    def _start_group(self) -> None:
        """Hand over what waits; start a writer if there is none."""
        if self._is_writing or not self._submitted:
            return
        self._is_writing = True
        if not self._is_running and self._refusal is None:
            self._starting = self._loop.create_task(self._start_again(), name="sqlite-writer")
            return
        group, self._submitted = self._submitted[:MAX_WRITES_PER_COMMIT], self._submitted[MAX_WRITES_PER_COMMIT:]
        self._group = group
        self.counts.begun += 1
        try:
            if self._refusal is not None:
                raise self._refusal
            self._host.write(list(map(_statements_of, group)))
        except Exception as error:
            self._fail_group(error)

    async def _start_host(self) -> None:
        self._known = await self._host.start(
            self._known, self._setup, on_report=self._take_report, on_loss=self._lose_writer
        )
        self._is_running = True

    async def _start_again(self) -> None:
        """Start another writer for the writes that wait; fail them if that fails. The next write tries it again."""
        try:
            await self._start_host()
        except Exception as error:
            while self._submitted:
                self._group, self._submitted = self._submitted, []
                self.counts.begun += 1
                self._fail_group(error)
        else:
            # it cannot know what was committed before it was opened
            self._report_changes(ChangedRows((), is_foreign=True))
            self._is_writing = False
            self._start_group()

    def _lose_writer(self) -> None:
        self._is_running = False
        if self._group:
            self._fail_group(StorageError(LOST))
        self._is_writing = False
        self._report_changes(ChangedRows((), is_foreign=True))
        if self._submitted:
            self._loop.call_soon(self._start_group)
        self._on_loss()

    def _fail_group(self, error: Exception) -> None:
        self._take_report(Report([error] * len(self._group), (), is_foreign=False, is_free=True))

    def _take_report(self, report: Report) -> None:
        group: Sequence[Submitted] = ()
        if report.results:
            group, self._group = self._group, ()
            self.counts.finished += 1
        if report.is_free:  # before what may fail: without another group no write would ever be done
            self._is_writing = False
            if self._submitted:  # the next group after this turn, with all that the turn adds
                self._loop.call_soon(self._start_group)
        self._unfinished -= len(group)
        self._report_changes(ChangedRows(report.changed, report.is_foreign))
        for write, result in zip(group, report.results, strict=True):
            if isinstance(result, Exception):
                if not write.done.cancelled():
                    write.done.set_exception(result)
                continue
            if write.wake:
                self._notify(*write.wake)
            if not write.done.cancelled():
                write.done.set_result([_ONE_ROW if one == 1 else _outcome(one) for one in result])

    def _report_changes(self, changed: ChangedRows) -> None:
        try:
            self._on_changes(changed)
        except Exception as error:  # the writes are done all the same
            self._loop.call_exception_handler({"message": "a listener for changed rows failed", "exception": error})


def _ignore_error(done: asyncio.Future[list[Outcome]]) -> None:
    """Look at an error that no caller waits for, so that the loop does not report it."""
    if not done.cancelled():
        done.exception()


def _outcome(plain: PlainOutcome) -> Outcome:
    if isinstance(plain, int):
        return Outcome(count=plain)
    names, rows = plain
    return Outcome(count=len(rows), rows=[dict(zip(names, row, strict=True)) for row in rows])
