"""Idempotency: recognizes a repeated order request, through the database and so over all processes.

* A request with an Idempotency-Key has the record of that key.
* A request without key, from an SDK that counts its retries, has a record with a key derived from its content and an
  ordinal: the first try reserves the next ordinal, and a retry joins the newest record that is still unanswered.
* The first request to bind the record to its batch creates the tasks; the others return the same tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.clock import Clock
from broker.errors import ApiError
from storage.idempotency import IdempotencyRecord, IdempotencyRecords

RETRY_WINDOW_SECONDS: Final = 10.0
"""An SDK retries within seconds; an equal request after that is a new order."""


@dataclass(frozen=True, kw_only=True)
class Idempotency:
    """Assigns idempotency records to order requests."""

    clock: Clock
    records: IdempotencyRecords

    async def find_record(
        self, caller: str, fingerprint: str, *, key: str | None, retry_count: int
    ) -> IdempotencyRecord:
        """Return the request's record, with a batch if its tasks exist.

        retry_count: how many times the client has sent this request before, by its own count.
        Raises `ApiError` for a key that was used with other content.
        """
        if key is not None:
            new = IdempotencyRecord(caller=caller, key=key, fingerprint=fingerprint, created_at=self.clock.now())
            return await self.get_record(caller, fingerprint, key) or new
        joined = await self._join_first_try(caller, fingerprint, retry_count) if retry_count else None
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

    async def _join_first_try(self, caller: str, fingerprint: str, retry_count: int) -> IdempotencyRecord | None:
        since = self.clock.now() - RETRY_WINDOW_SECONDS
        while True:
            found = await self.records.newest_unanswered(caller, fingerprint, since=since, retry_count=retry_count)
            if found is None or await self.records.join_retry(found, retry_count):
                return found

    async def _reserve_record(self, caller: str, fingerprint: str, retry_count: int) -> IdempotencyRecord:
        while True:
            ordinal = await self.records.next_ordinal(caller, fingerprint)
            new = IdempotencyRecord(
                caller=caller,
                key=f"derived {fingerprint} {ordinal}",
                fingerprint=fingerprint,
                ordinal=ordinal,
                retry_count=retry_count,
                created_at=self.clock.now(),
            )
            if await self.records.insert_if_absent(new):
                return new
