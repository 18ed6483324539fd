"""Answers in progress: an order whose answer was cut off is answered again to an equal request, not made again.

A record of `storage.idempotency` names the process that sends its answer. In that process the answer is known as an
`OpenAnswer`; others see from the table of senders whether the process still lives. An equal request is a new order
while the answer is being sent, and after it was sent to its end; in between, when its connection is lost or its process
is dead, the request takes the record over.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Final

from broker.clock import Clock
from broker.logs import log
from storage.errors import StorageError
from storage.idempotency import AnswerSenders, IdempotencyRecord, IdempotencyRecords

BEAT_SECONDS: Final = 1.0
"""A process that sends answers is marked as alive this often."""
DEAD_BEATS: Final = 3
"""A process that is not marked for this many beats is dead."""
LOOKS_PER_BEAT: Final = 4
NOTICE_SECONDS: Final = 0.25
"""A lost connection is noticed within this time."""


@dataclass(eq=False, kw_only=True)
class OpenAnswer:
    """An answer that this process is sending."""

    record: IdempotencyRecord
    is_sent: bool = False
    """True once it was sent to its end, while that may still turn out to be wrong."""

    @property
    def key(self) -> tuple[str, str]:
        return self.record.caller, self.record.key


@dataclass(kw_only=True)
class OpenAnswers:
    """The answers that this process is sending, and whether other processes still send theirs."""

    clock: Clock
    records: IdempotencyRecords
    senders: AnswerSenders
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    """Of this process."""
    beat_seconds: float = BEAT_SECONDS
    _open: dict[tuple[str, str], OpenAnswer] = field(default_factory=dict)
    _taking: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Keys of records that requests of this process are about to get."""
    _beating: asyncio.Task[None] | None = None
    _confirming: set[asyncio.Task[None]] = field(default_factory=set)

    async def show_alive(self) -> None:
        """Mark this process as alive, before it has a record; it stays so for as long as answers are open."""
        if not self._is_beating:
            await self.senders.mark_seen(self.name, self.clock.now())

    @contextmanager
    def reserve_key(self, caller: str, key: str) -> Iterator[None]:
        """Let no other request of this process take over the record of a key while it is written."""
        self._taking[caller, key] += 1
        try:
            yield
        finally:
            self._taking[caller, key] -= 1
            self._taking += Counter()  # drops the zeros

    def begin(self, record: IdempotencyRecord) -> OpenAnswer:
        """Register the answer of a record; a later one replaces it."""
        answer = OpenAnswer(record=record)
        self._open[answer.key] = answer
        if not self._is_beating:
            self._beating = asyncio.create_task(self._beat())
        return answer

    async def take_over(self, seen: IdempotencyRecord, *, retry_count: int, is_open: bool) -> OpenAnswer | None:
        """Register the answer of a record that was cut off; None if another request was quicker.

        is_open: also if this process still sends it, because the client says that it gave up on it.
        """
        taken = replace(seen, sender=self.name, left_at=None, retry_count=retry_count)
        key = (seen.caller, seen.key)
        if key in self._taking or (key in self._open and not is_open):
            return None
        with self.reserve_key(*key):
            return self.begin(taken) if await self.records.take_over(seen, taken) else None

    async def leave(self, answer: OpenAnswer) -> None:
        """Record that the answer was not sent to its end."""
        if self._open.get(answer.key) is answer:
            del self._open[answer.key]
            await self.records.mark_left(answer.record, self.clock.now())

    async def finish(self, answer: OpenAnswer) -> None:
        """Record that the answer was sent to its end, unless a retry of its client has replaced it."""
        if self._open.get(answer.key) is not answer:
            return
        try:
            await self.records.mark_answered(answer.record, self.clock.now())
        except StorageError:
            self._forget(answer)
            raise
        self._forget(answer)

    def _forget(self, answer: OpenAnswer) -> None:
        if self._open.get(answer.key) is answer:
            del self._open[answer.key]

    def confirm(self, answer: OpenAnswer, wait_received: Callable[[], Awaitable[bool]] | None) -> None:
        """Record the end of an answer whose last byte was handed to the network.

        wait_received: waits until the client has the answer, and returns whether it does; None if that cannot be
        observed.
        """
        answer.is_sent = True
        task = asyncio.create_task(self._confirm(answer, wait_received))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _confirm(self, answer: OpenAnswer, wait_received: Callable[[], Awaitable[bool]] | None) -> None:
        is_received = wait_received is None or await wait_received()
        try:
            await (self.finish(answer) if is_received else self.leave(answer))
        except StorageError as error:
            log.warning("the end of an answer is not recorded", action="answer_not_recorded", why=str(error))

    def is_given_up(self, record: IdempotencyRecord) -> bool:
        """Return whether it is known already that an answer was cut off."""
        return self._is_cut_off(record, ())

    async def find_cut_off(self, records: Sequence[IdempotencyRecord]) -> list[IdempotencyRecord]:
        """Return those whose answer no process sends any more, though it was not sent to its end."""
        others = sorted({record.sender for record in records} - {"", self.name})
        are_dead = await asyncio.gather(*(self._is_dead(sender) for sender in others))
        dead = {sender for sender, is_dead in zip(others, are_dead, strict=True) if is_dead}
        ours = [self._open.get((record.caller, record.key)) for record in records if record.sender == self.name]
        if any(answer is not None and not answer.is_sent for answer in ours):
            await asyncio.sleep(NOTICE_SECONDS)  # a connection may be lost already
        return [record for record in records if self._is_cut_off(record, dead)]

    def _is_cut_off(self, record: IdempotencyRecord, dead: Collection[str]) -> bool:
        if record.sender == self.name:
            return (record.caller, record.key) not in self._open
        return not record.sender or record.sender in dead

    async def _is_dead(self, sender: str) -> bool:
        """Return whether a process stopped marking itself as alive. Compares no clocks of two machines.

        A process that is alive marks itself again within a few seconds, so this waits until it is certain.
        """
        first = await self.senders.get(sender)
        for _ in range(DEAD_BEATS * LOOKS_PER_BEAT):
            await asyncio.sleep(self.beat_seconds / LOOKS_PER_BEAT)
            if await self.senders.get(sender) != first:
                return False
        return True

    @property
    def _is_beating(self) -> bool:
        return self._beating is not None and not self._beating.done()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.beat_seconds)
            if not self._open:
                return
            try:
                await self.senders.mark_seen(self.name, self.clock.now())
            except StorageError as error:
                log.warning("this process is not marked as alive", action="sender_not_marked", why=str(error))

    async def aclose(self) -> None:
        """Record the end of every answer: those that were sent, and those that were not."""
        for task in (*self._confirming, self._beating):
            if task is not None:
                task.cancel()
        await asyncio.gather(*self._confirming, *([self._beating] if self._beating else []), return_exceptions=True)
        for answer in list(self._open.values()):
            with suppress(StorageError):
                await (self.finish(answer) if answer.is_sent else self.leave(answer))
