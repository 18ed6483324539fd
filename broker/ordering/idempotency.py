"""Idempotency: recognizes a repeated order request, through the database and so over all processes.

* A request with an Idempotency-Key has the record of that key.
* A request without key whose client may repeat it by itself has a record with a key derived from its content and an
  ordinal, and the process that sends its answer. Another equal request takes it over if the client says that it is a
  retry, or if the answer was cut off (`broker.ordering.answers`); otherwise it reserves the next ordinal.
* The first request to bind the record to its batch creates the tasks; the others return the same tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.errors import ApiError
from broker.ordering.answers import OpenAnswer, OpenAnswers
from storage.idempotency import IdempotencyRecord, IdempotencyRecords

RETRY_WINDOW_SECONDS: Final = 10.0
"""An SDK retries within seconds; an equal request after that is a new order."""
HELD_RETRY_SECONDS: Final = 600.0
"""The same for an answer that takes longer: its client may have been restarted, or be a person."""


@dataclass(frozen=True, kw_only=True)
class FoundRecord:
    """The record of a request, and its answer if the end of that is recorded."""

    record: IdempotencyRecord
    answer: OpenAnswer | None = None


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """Assigns idempotency records to order requests."""

    clock: Clock
    records: IdempotencyRecords
    answers: OpenAnswers

    async def find_record(
        self, caller: str, fingerprint: str, *, key: str | None, retry_count: int, retry_seconds: float | None
    ) -> FoundRecord:
        """Return the request's record, with a batch if its tasks exist.

        retry_count: how many times the client has sent this request before, by its own count. retry_seconds: see
        `OrderRequest`. Raises `ApiError` for a key that was used with other content.
        """
        if key is not None:
            new = IdempotencyRecord(caller=caller, key=key, fingerprint=fingerprint, created_at=self.clock.now())
            return FoundRecord(record=await self.get_record(caller, fingerprint, key) or new)
        await self.answers.show_alive()
        joined = await self._join_unsent(caller, fingerprint, retry_count, retry_seconds or RETRY_WINDOW_SECONDS)
        return joined or await self._reserve_record(caller, fingerprint, retry_count)

    async def get_record(self, caller: str, fingerprint: str, key: str) -> IdempotencyRecord | None:
        """Return the stored record of a key. Raises `ApiError` for a key that was used with other content."""
        stored = await self.records.get(caller, key)
        if stored is not None and stored.fingerprint != fingerprint:
            raise ApiError(
                "idempotency_mismatch",
                "This Idempotency-Key was used for another request. Use a new key for a new request.",
                field="Idempotency-Key",
            )
        return stored

    async def _join_unsent(
        self, caller: str, fingerprint: str, retry_count: int, retry_seconds: float
    ) -> FoundRecord | None:
        """Take over a record whose answer was cut off. A client that counts its retries says so itself."""
        since = self.clock.now() - retry_seconds
        unsent = await self.records.list_unsent(caller, fingerprint, own=self.answers.name, since=since)
        given_up = [record for record in unsent if record.retry_count < retry_count]
        # first those that were cut off: the client of another may still wait for it
        for seen in sorted(given_up, key=self.answers.is_given_up, reverse=True):
            if answer := await self.answers.take_over(seen, retry_count=retry_count, is_open=True):
                return FoundRecord(record=answer.record, answer=answer)
        others = [record for record in unsent if record not in given_up]
        for seen in await self.answers.find_cut_off(others):
            if answer := await self.answers.take_over(seen, retry_count=seen.retry_count, is_open=False):
                return FoundRecord(record=answer.record, answer=answer)
        return None

    async def _reserve_record(self, caller: str, fingerprint: str, retry_count: int) -> FoundRecord:
        while True:
            ordinal = await self.records.next_ordinal(caller, fingerprint)
            new = IdempotencyRecord(
                caller=caller,
                key=f"derived {fingerprint} {ordinal}",
                fingerprint=fingerprint,
                ordinal=ordinal,
                retry_count=retry_count,
                created_at=self.clock.now(),
                sender=self.answers.name,
            )
            with self.answers.reserve_key(new.caller, new.key):
                if await self.records.insert_if_absent(new):
                    return FoundRecord(record=new, answer=self.answers.begin(new))
