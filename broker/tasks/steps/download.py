"""The step of FETCHING: download the results of a job and store them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from broker.errors import DownloadError, EgressBlocked, ProviderError, SinkError
from broker.logs import log
from broker.net.fetcher import Fetcher
from broker.providers.base import Provider
from broker.reports import STORED_PREFIX, Finished
from broker.tasks import lifecycle
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.lifecycle import DownloadFailure
from broker.tasks.result_sink import SinkFactory
from broker.tasks.transitions import Transitions
from storage.blobs.store import BlobMissing, BlobStore
from storage.errors import StorageError
from storage.images import Images, StoredImage
from storage.states import TaskState
from storage.tasks import Task
from uploads.intake import Intake
from uploads.structure import InvalidImage

DOWNLOAD_CONCURRENCY: Final = 32
"""Each takes up to a megabyte while a large image arrives. Of small ones, which wait for the disk together, 20 at once
complete fewer tasks per second, and 60 no more."""


@dataclass(frozen=True, kw_only=True)
class DownloadStep:
    """Downloads results."""

    images: Images
    intake: Intake
    fetcher: Fetcher
    blobs: BlobStore
    accounts: ProviderAccounts
    sinks: SinkFactory
    transitions: Transitions
    max_download_bytes: int
    """Limit of one result."""
    downloads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(DOWNLOAD_CONCURRENCY))

    async def run(self, task: Task) -> None:
        """Download what is not stored yet, then decide.

        A result that seems gone is looked for at a fresh link in the next turn, as file servers lag. One whose address
        is blocked is looked for at once, and once, as that address will stay blocked.
        """
        outputs, results, failures = task.outputs, *await self._download_missing(task)
        is_blocked = any(failure.is_blocked for failure in failures)
        was_looked_for = task.has_ended and task.step_retries > 0
        if any(failure.code == "result_gone" for failure in failures) or (is_blocked and not was_looked_for):
            fresh = await self._refresh_links(task)
            if fresh is None:  # the provider could not be asked: it is in the next turn
                failures = [replace(failure, is_blocked=False) for failure in failures]
            elif is_blocked and fresh.outputs != task.outputs:
                done = {image.position for image in results}
                again, failures = await self._download_missing(fresh, done)
                outputs, results = fresh.outputs, [*results, *again]
        decide = partial(lifecycle.downloaded, stored=len(outputs) - len(failures), failures=failures)
        await self.transitions.apply_own(task, decide, results=results)

    async def _download_missing(
        self, task: Task, done: Set[int] = frozenset()
    ) -> tuple[list[StoredImage], list[DownloadFailure]]:
        """Download the results that are not stored yet; return their rows, which are not written yet, and failures.

        done: the positions of other such rows.
        """
        if task.step_retries or task.ended_at is not None:  # rows are written with a change of the task, so not before
            done |= {image.position for image in await self.images.list_of_owner(task.id, "result")}
        missing = [position for position in range(len(task.outputs)) if position not in done]
        if task.step_retries:
            self.transitions.metrics.download_retries.inc(len(missing))
        if len(missing) == 1:  # most jobs have one result, which needs no task of its own
            outcomes = [await self._download(task, missing[0])]
        else:
            outcomes = await asyncio.gather(*(self._download(task, position) for position in missing))
        results = [outcome for outcome in outcomes if isinstance(outcome, StoredImage)]
        return results, [outcome for outcome in outcomes if isinstance(outcome, DownloadFailure)]

    async def _download(self, task: Task, position: int) -> StoredImage | DownloadFailure:
        clock = self.transitions.clock
        async with self.downloads:
            begun = clock.monotonic()
            try:
                image = await self._store_result(task, position)
            except (DownloadError, InvalidImage, StorageError) as error:
                failure = _failure_of(error)
                self.transitions.metrics.downloads.labels(failure.code).inc()
                why = error.reason if isinstance(error, DownloadError) else str(error)
                log.warning("download failed", action="download_failed", task=task.id, code=failure.code, why=why)
                return failure
            self.transitions.metrics.downloads.labels("stored").inc()
            self.transitions.metrics.download_bytes.inc(image.size)
            self.transitions.metrics.download_seconds.observe(clock.monotonic() - begun)
        return image

    async def _store_result(self, task: Task, position: int) -> StoredImage:
        max_bytes = self.max_download_bytes
        async with self._open_output(task.outputs[position]) as chunks:
            image = await self.intake.from_stream(task.id, chunks, max_bytes=max_bytes)
        return image.to_row(owner=task.id, kind="result", position=position, now=self.transitions.clock.now())

    def _open_output(self, output: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open the bytes of a result, at its URL or in the store, where the response to the submission put it."""
        if output.startswith(STORED_PREFIX):
            return self._open_stored(output)
        return self.fetcher.open(output, max_bytes=self.max_download_bytes)

    @asynccontextmanager
    async def _open_stored(self, output: str) -> AsyncGenerator[AsyncIterator[bytes]]:
        try:
            reader = await self.blobs.open(output.removeprefix(STORED_PREFIX))
        except BlobMissing as error:
            raise DownloadError("result_gone", "the stored result is missing") from error
        async with contextlib.aclosing(reader):
            yield reader

    async def _refresh_links(self, task: Task) -> Task | None:
        """Replace the links by fresh ones of the provider, and return the row then; None if it did not answer."""
        row = await self.transitions.tasks.get(task.id)
        provider = None if row is None else await self.accounts.find_bound(row)
        if row is None or provider is None or row.state != TaskState.FETCHING:
            return task
        try:
            report = Finished(outputs=await self._fresh_links(row, provider), job_id=row.job_id)
        except (ProviderError, SinkError):
            return None
        await self.transitions.apply_report(row, report, await self._attempt_of_result(row), is_leased=False)
        return await self.transitions.tasks.get(task.id) or task

    async def _attempt_of_result(self, task: Task) -> int:
        """Return the number of the attempt that made the result: an earlier one can succeed after a later one began."""
        attempts = await self.transitions.attempts.list_of_task(task.id)
        made = {"provider": task.provider, "job_id": task.job_id, "outcome": "succeeded"}
        found = (one.number for one in attempts if made.items() <= vars(one).items())
        return next(found, task.attempt)

    async def _fresh_links(self, task: Task, provider: Provider) -> tuple[str, ...]:
        if task.job_id is not None:
            report = await provider.check(task.job_id, self.sinks.for_task(task.id))
            if isinstance(report, Finished) and report.outputs and report.outputs != task.outputs:
                return report.outputs
        return tuple(
            [one if one.startswith(STORED_PREFIX) else await provider.refresh_url(one) or one for one in task.outputs]
        )


def _failure_of(error: DownloadError | InvalidImage | StorageError) -> DownloadFailure:
    if isinstance(error, DownloadError):
        is_blocked = isinstance(error, EgressBlocked)
        return DownloadFailure(code=error.code, message=str(error), is_blocked=is_blocked)
    if isinstance(error, StorageError):
        return DownloadFailure(code="storage_full", message=str(error))
    if error.truncated:
        return DownloadFailure(code="download_failed", message=str(error))
    return DownloadFailure(code="invalid_result", message=str(error))
