"""Answers in progress: an order whose answer was cut off is answered again to an equal request, not made again.

A record of `storage.idempotency` names the process that sends its answer. In that process the answer is known as an
`OpenAnswer`; others see from the table of senders whether the process still lives. An equal request is a new order
while the answer is being sent, and after it was sent to its end; in between, when its connection is lost or its process
is dead, the request takes the record over.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

from broker.clock import Clock
from broker.logs import log
from storage.errors import StorageError
from storage.idempotency import AnswerSenders, IdempotencyRecord, IdempotencyRecords

BEAT_SECONDS: Final = 1.0
"""A process that sends answers is marked as alive this often."""
DEAD_SECONDS: Final = 3 * BEAT_SECONDS
"""A process that was not marked for this long is dead."""
NOTICE_SECONDS: Final = 0.25
"""A lost connection is noticed within this time."""
CONFIRM_SECONDS: Final = 2.0
"""A client that got only a part of an answer resets its connection within this time."""


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
    _open: dict[tuple[str, str], OpenAnswer] = field(default_factory=dict)
    _taking: set[tuple[str, str]] = field(default_factory=set)
    _beating: asyncio.Task[None] | None = None
    _confirming: set[asyncio.Task[None]] = field(default_factory=set)

    async def show_alive(self) -> None:
        """Mark this process as alive, now and for as long as answers are open."""
        if self._beating is None or self._beating.done():
            await self.senders.mark_seen(self.name, self.clock.now())
            self._beating = asyncio.create_task(self._beat())

    def begin(self, record: IdempotencyRecord) -> OpenAnswer:
        """Register the answer of a record; a later one replaces it."""
        answer = OpenAnswer(record=record)
        self._open[answer.key] = answer
        return answer

    async def take_over(self, seen: IdempotencyRecord, *, retry_count: int, is_open: bool) -> OpenAnswer | None:
        """Register the answer of a record that was cut off; None if another request was quicker.

        is_open: also if this process still sends it, because the client says that it gave up on it.
        """
        taken = replace(seen, sender=self.name, left_at=None, retry_count=retry_count)
        key = (seen.caller, seen.key)
        if key in self._taking or (key in self._open and not is_open):
            return None
        self._taking.add(key)
        try:
            return self.begin(taken) if await self.records.take_over(seen, taken) else None
        finally:
            self._taking.discard(key)

    async def leave(self, answer: OpenAnswer) -> None:
        """Record that the answer was not sent to its end."""
        if self._open.get(answer.key) is answer:
            del self._open[answer.key]
            await self.records.mark_left(answer.record, self.clock.now())

    async def finish(self, answer: OpenAnswer) -> None:
        """Record that the answer was sent to its end."""
        if self._open.get(answer.key) is answer:
            del self._open[answer.key]
        await self.records.mark_answered(answer.record, self.clock.now())

    def confirm(self, answer: OpenAnswer, reset: asyncio.Event | None) -> None:
        """Record the end of an answer whose last byte was handed to the network.

        reset: set when the client resets the connection, which means that it did not read all; None if that cannot be
        observed.
        """
        answer.is_sent = True
        task = asyncio.create_task(self._confirm(answer, reset))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _confirm(self, answer: OpenAnswer, reset: asyncio.Event | None) -> None:
        with suppress(TimeoutError):
            if reset is not None:
                await asyncio.wait_for(reset.wait(), CONFIRM_SECONDS)
        try:
            await (self.leave(answer) if reset is not None and reset.is_set() else self.finish(answer))
        except StorageError as error:
            log.warning("the end of an answer is not recorded", action="answer_not_recorded", why=str(error))

    async def find_cut_off(self, records: Sequence[IdempotencyRecord], *, since: float) -> list[IdempotencyRecord]:
        """Return those whose answer nobody sends any more, though it was not sent to its end.

        since: a process that died before this moment does not count.
        """
        others = {record.sender for record in records} - {"", self.name}
        dead = {sender for sender in others if await self._is_dead(sender, since)}
        ours = [self._open.get((record.caller, record.key)) for record in records if record.sender == self.name]
        if any(answer is not None and not answer.is_sent for answer in ours):
            await asyncio.sleep(NOTICE_SECONDS)  # a connection may be lost already
        return [record for record in records if self._is_cut_off(record, dead)]

    def _is_cut_off(self, record: IdempotencyRecord, dead: Collection[str]) -> bool:
        if record.sender == self.name:
            return (record.caller, record.key) not in self._open
        return not record.sender or record.sender in dead

    async def _is_dead(self, sender: str, since: float) -> bool:
        """Return whether a process stopped marking itself as alive, after `since`. Compares no clocks of two machines.

        A process that is alive marks itself again within a few seconds, so this waits until it is certain.
        """
        first = await self.senders.get(sender)
        if first is None or first.seen_at < since:
            return False
        silence = min(max(self.clock.now() - first.seen_at, 0.0), DEAD_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(DEAD_SECONDS - silence):
                while await self.senders.get(sender) == first:  # noqa: ASYNC110
                    await asyncio.sleep(BEAT_SECONDS / 4)
                return False
        return True

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
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
