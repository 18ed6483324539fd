"""One step per state of a living task: the I/O it asks for, then a decision of `lifecycle`, then compare and set.

No transaction stays open across the network. What a step learned is applied to the row as it is then, not as it was:
if a callback was quicker, the same pure decision is taken again on what it left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from broker import lifecycle, tally
from broker.clock import Clock
from broker.errors import DownloadError, NotSent, ProviderError
from broker.lifecycle import NOTHING, Changes, Rules, Trouble
from broker.logs import log
from broker.metrics import Metrics
from broker.net.fetcher import Fetcher
from broker.notifications.outbox import Outbox
from broker.orders import Order, Reference
from broker.pacing import pause_after
from broker.providers.base import Provider
from broker.reports import Failed, Finished, Pending, Report
from storage.blobs import BlobMissing, BlobStore
from storage.database import Stale, Statement, StorageError
from storage.hooks import Hook, Hooks
from storage.images import Images, Kind, StoredImage
from storage.lanes import Lanes, Limits
from storage.tasks import DUE, Attempt, State, Task, Tasks, task_channel
from uploads.intake import Image, Intake, IntakeError

T = TypeVar("T")
WRITE_AGAIN_SECONDS = 0.5
CUT_OFF_AT_ONCE = 50

CALLBACK: Final = "callback"
QUESTION: Final = "question"
POLL: Final = "poll"
"""How the end of an attempt was learned, for the ledger (`storage.tasks.Attempt`)."""

Decision = Callable[[Task, Attempt | None], Changes]
"""What to change, given the row and one line of its ledger as they are now."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Takes one task one step further.

    callback_url: (provider, task, attempt) → the address that the provider is to call, with its token; None without
    one. image_base: where a provider reaches our images; None if it cannot. max_download_bytes: of one result.
    turns: how many may stand in line for a provider's lane at once; the others would hold connections meanwhile.
    """

    clock: Clock
    rules: Rules
    tasks: Tasks
    images: Images
    hooks: Hooks
    lanes: Lanes
    outbox: Outbox
    blobs: BlobStore
    intake: Intake
    fetcher: Fetcher
    providers: Mapping[str, Provider]
    metrics: Metrics
    callback_url: Callable[[str, str, int], str | None]
    image_base: Callable[[], str | None]
    max_download_bytes: int
    downloads: asyncio.Semaphore
    turns: asyncio.Semaphore

    async def take(self, task: Task) -> None:
        """The step of the task's state."""
        step = {
            State.QUEUED: self.submit,
            State.SUBMITTING: self.recover,
            State.WAITING: self.check,
            State.FETCHING: self.fetch,
        }[task.state]
        await step(task)

    # -- the one way a row changes

    async def settle(
        self,
        task: Task,
        decide: Decision,
        *,
        number: int | None = None,
        also: Sequence[Statement] = (),
        holder: bool = True,
        news: bool = True,
        report: Report | None = None,
    ) -> Task | None:
        """Apply a decision to the row as it is now; whoever was quicker, it is taken again on what they left.

        An end that the caller wants to hear of is put into the outbox by the same transaction.
        number: which line of the ledger it is about, the current one if None. also: statements of the same transaction.
        holder: whether the caller holds the task's lease, which ends here. news: whether the decision counts for a row
        whose lease was lost meanwhile: what a provider said does, what follows from the row alone is somebody else's
        to decide by then. report: what the decision is about, if a provider said something. Returns the row as it was
        decided on.
        """
        seen = task
        while True:
            if holder and not news and task.leased_by != seen.leased_by:
                return None
            attempt = await self.tasks.attempt(task.id, number or task.attempt)
            changes = decide(task, attempt)
            values = self._values(seen, task, changes, holder)
            ledger = (
                [self.tasks.noting(task.id, attempt.number, **changes.attempt)] if attempt and changes.attempt else []
            )
            if not values and not ledger and not also:
                return task
            told = await self.outbox.enqueue_event(task, replace(task, **values))
            try:
                with self._timed():
                    await self.tasks.database.transact(
                        self.tasks.saving(task, **values), *ledger, *told, *also, wake=(DUE, task_channel(task.id))
                    )
            except Stale:
                fresh = await self.tasks.get(task.id)
                if fresh is None or fresh.version == task.version:
                    return None  # the row is gone, or what comes `also` was done by somebody else
                if also or not await self._is_done(fresh, task, changes):
                    task = fresh
                    continue
            self._tell(task, changes, report)
            return task

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        begun = self.clock.monotonic()
        try:
            yield
        finally:
            self.metrics.store_seconds.labels("change").observe(self.clock.monotonic() - begun)

    async def _is_done(self, fresh: Task, task: Task, changes: Changes) -> bool:
        """Whether the change is there after all: the line broke between its commit and the answer."""
        if not changes.task or fresh.version != task.version + 1:
            return False
        ledger = await self.tasks.attempt(task.id, task.attempt) if changes.attempt else None
        return _has(fresh, changes.task) and (not changes.attempt or _has(ledger, changes.attempt))

    @staticmethod
    def _values(seen: Task, task: Task, changes: Changes, holder: bool) -> dict[str, Any]:
        values = dict(changes.task)
        same_state = values.get("state", task.state) == seen.state == task.state
        if same_state and "due_at" in values and task.due_at != seen.due_at:
            values["due_at"] = min(values["due_at"], task.due_at)  # somebody asked for haste in the meantime
        held = holder and task.leased_by == seen.leased_by
        if held or values.get("state", task.state) != task.state:
            values |= {"lease_until": 0.0, "leased_by": ""}
        return values

    def _tell(self, task: Task, changes: Changes, report: Report | None = None) -> None:
        tally.count(self.metrics, task, changes, self.clock.now(), report)
        state = changes.task.get("state", task.state)
        if changes.attempt.get("learned_by") == QUESTION:
            self.metrics.callbacks_missing.labels(task.provider).inc()
        if changes.attempt.get("spare"):
            log.warning("a second result for the same order was kept as spare", action="spare_kept", task=task.id)
        if changes.attempt.get("outcome") in {"failed", "refused"} and isinstance(report, Failed) and not report.known:
            # its words may repeat the prompt: they are in the task's errorDetail
            log.warning(
                "a failure that no table knows",
                action="failure_unmapped",
                task=task.id,
                provider=task.provider,
                provider_code=_short_code(report.provider_code),
            )
        if state == task.state:
            return
        log.info(
            f"task is {state.value} now",
            action=f"task_{state.value}",
            task=task.id,
            was=task.state.value,
            attempt=changes.task.get("attempt", task.attempt),
            provider=task.provider,
            code=changes.task.get("error_code"),
        )

    async def _after(
        self,
        task: Task,
        report: Report,
        number: int | None,
        *,
        also: Sequence[Statement] = (),
        holder: bool = True,
        news: bool = True,
        learned_by: str | None = None,
    ) -> None:
        """Let the lifecycle decide on a report about one attempt. learned_by: for the ledger, if it is an end."""
        now = self.clock.now()
        await self.settle(
            task,
            lambda row, attempt: _learned(lifecycle.after(row, attempt, report, now, self.rules), learned_by),
            number=number,
            also=also,
            holder=holder,
            news=news,
            report=report,
        )

    async def _decide(self, task: Task, decide: Callable[[Task, float, Rules], Changes]) -> None:
        """Let the lifecycle decide on the row alone."""
        await self.settle(task, lambda row, _: decide(row, self.clock.now(), self.rules), news=False)

    # -- queued

    async def submit(self, task: Task) -> None:
        """Order at the provider, once.

        1. Patience over: fail. 2. References to where the provider can fetch them: free, so before the intent.
        3. Intent, durably, if the lane has room. 4. The one request that may cost money. 5. Whatever it said, into
        row, ledger and lane.
        """
        provider = self.providers.get(task.provider)
        if provider is None or self.clock.now() >= task.deadline_at:
            await self._decide(task, lifecycle.overdue)
            return
        order = await provider.upload_references(self.order(task)) if task.refs else self.order(task)
        if isinstance(order, Failed):
            log.warning("references not handed over", action="hand_over_failed", task=task.id, code=order.code)
            await self._decide(task, lambda row, now, rules: lifecycle.unprepared(row, order, now, rules))
            return
        attempt = await self._intend(task, provider)
        if attempt is None:
            return
        intended = await self._patiently(lambda: self.tasks.get(task.id))
        if intended and (intended.state, intended.attempt) == (State.SUBMITTING, attempt.number):
            await self._order(intended, order, attempt, provider)

    async def _intend(self, task: Task, provider: Provider) -> Attempt | None:
        now = self.clock.now()
        number = task.attempt + 1
        hooked = self.callback_url(task.provider, task.id, number) is not None
        attempt = Attempt(task_id=task.id, number=number, provider=provider.name, key_id=provider.key_id, sent_at=now)
        changes = lifecycle.intent(task, hooked=hooked, now=now, rules=self.rules).task
        limits = Limits(creates=provider.creates_per_10s, places=provider.concurrency)
        try:
            async with self.turns:
                await self.tasks.database.transact(
                    self.tasks.saving(task, **changes),
                    *self.lanes.intending(attempt, limits),
                    wake=(task_channel(task.id),),
                )
        except (Stale, StorageError):
            if not await self._patiently(lambda: self._intended(task, number)):
                # no room, or changed meanwhile: back into the queue
                await self.settle(task, lambda *_: NOTHING, news=False)
                return None
        self._tell(task, Changes(task=changes))
        return attempt

    async def _intended(self, task: Task, number: int) -> bool:
        """Whether the intent is ours after all: it was written, and the connection broke before we knew."""
        row = await self.tasks.get(task.id)
        return row is not None and (row.state, row.attempt, row.leased_by) == (
            State.SUBMITTING,
            number,
            task.leased_by,
        )

    async def _order(self, task: Task, order: Order, attempt: Attempt, provider: Provider) -> None:
        address = self.callback_url(task.provider, task.id, attempt.number) if task.hooked else None
        begun = self.clock.monotonic()
        try:
            report = await provider.submit(order, address)
        except ProviderError as error:
            self._submitted(provider, "unknown", begun)
            log.warning(
                "the outcome of a submission is unknown", action="submit_unknown", task=task.id, why=error.summary
            )
            await self._pace(provider, None)
            await self._decide(task, partial(lifecycle.unknown, attempt=attempt.number))
            return
        self._submitted(provider, _outcome(report), begun)
        await self._surely(task, report, attempt.number)
        await self._pace(provider, report)

    def _submitted(self, provider: Provider, outcome: str, begun: float) -> None:
        self.metrics.submissions.labels(provider.name, outcome).inc()
        self.metrics.submission_seconds.labels(provider.name).observe(self.clock.monotonic() - begun)

    async def _patiently(self, look: Callable[[], Awaitable[T]]) -> T:
        """Look, however long the store is in trouble: an intent that nobody knows of would never be ordered."""
        while True:
            try:
                return await look()
            except StorageError as error:
                log.error("an intent waits to be looked at", action="intent_kept", why=str(error))
                await asyncio.sleep(WRITE_AGAIN_SECONDS)

    async def _surely(self, task: Task, report: Report, number: int) -> None:
        """Write down what the provider answered, however long the store is in trouble: the answer is worth money."""
        while True:
            try:
                await self._after(task, report, number)
            except StorageError as error:
                log.error(
                    "an answer of the provider waits to be written down",
                    action="answer_kept",
                    task=task.id,
                    job=report.job_id,
                    why=str(error),
                )
                await asyncio.sleep(WRITE_AGAIN_SECONDS)
            else:
                return

    async def _pace(self, provider: Provider, report: Report | None) -> None:
        troubles = await self.lanes.troubles(provider.name)
        until = pause_after(report, troubles, self.clock.now(), self.rules)
        if until is not None:
            await self.tasks.database.transact(self.lanes.pausing(provider.name, until))
        elif troubles:
            await self.tasks.database.transact(self.lanes.clearing(provider.name), wake=(DUE,))

    def order(self, task: Task) -> Order:
        """What the row says, in the words that adapters understand."""
        return Order(
            prompt=task.prompt,
            model=task.model,
            mode="image-to-image" if task.mode == "image-to-image" else "text-to-image",
            aspect_ratio=task.aspect_ratio,
            resolution=task.resolution,
            output_format=_output_format(task.output_format),
            references=tuple(self._reference(ref) for ref in task.refs),
            steps=task.steps,
            seed=task.seed,
        )

    def _reference(self, ref: Mapping[str, Any]) -> Reference:
        base = self.image_base()
        return Reference(
            name=ref["name"],
            media_type=ref["media_type"],
            size=ref["size"],
            sha256=ref["sha256"],
            url=f"{base}/uploads/references/{ref['name']}" if base else None,
            read=lambda: self._read(ref["blob"]),
        )

    async def _read(self, blob: str) -> AsyncIterator[bytes]:
        """A reference's bytes for the provider. Without them nothing can be ordered, so nothing is."""
        try:
            async with contextlib.aclosing(await self.blobs.open(blob)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (BlobMissing, StorageError) as error:
            raise NotSent("a reference image cannot be read", permanent=True) from error

    # -- submitting

    async def recover(self, task: Task) -> None:
        """We died while ordering, or the answer never came, and the time for a callback is over."""
        await self._decide(task, partial(lifecycle.unknown, attempt=task.attempt))

    # -- waiting

    async def check(self, task: Task) -> None:
        """Ask the provider what became of the job."""
        provider = self.providers.get(task.provider)
        if provider is None or task.job_id is None:
            await self._decide(task, lifecycle.unheard)
            return
        try:
            report = await provider.check(task.job_id)
        except ProviderError as error:
            self.metrics.checks.labels(task.provider, "unheard").inc()
            log.info("the provider could not be asked", action="check_failed", task=task.id, why=error.summary)
            await self._decide(task, partial(lifecycle.unheard, retry_in=error.retry_in))
            return
        self.metrics.checks.labels(task.provider, type(report).__name__.lower()).inc()
        said, over = replace(report, job_id=task.job_id), not isinstance(report, Pending)
        learned_by = await self._way_of_asking(task) if over else None
        await self._after(task, said, task.attempt, news=over, learned_by=learned_by)

    async def _way_of_asking(self, task: Task) -> str:
        """How the end of a job was learned that was asked about. A callback that came meanwhile did come."""
        if not task.hooked:
            return POLL
        return CALLBACK if await self.hooks.believed(task.id, task.attempt) else QUESTION

    async def cut_off(self, before: float) -> int:
        """Whoever waits for the callback of an order sent before this moment asks instead. How many they were."""
        count = 0
        while waiting := await self.tasks.expecting(before, CUT_OFF_AT_ONCE):
            await asyncio.gather(*(self._ask_instead(task) for task in waiting))
            count += len(waiting)
        return count

    async def _ask_instead(self, task: Task) -> None:
        await self.settle(task, lambda row, _: lifecycle.cut_off(row, self.clock.now(), self.rules), holder=False)

    # -- news

    async def digest(self, task_id: str) -> None:
        """Take in the news of callbacks that were acknowledged before."""
        for hook in await self.hooks.unread(task_id):
            task = await self.tasks.get(task_id)
            digesting = self.hooks.digesting(hook, self.clock.now())
            if task is None:
                with contextlib.suppress(Stale):
                    await self.tasks.database.transact(digesting)
                continue
            news = self.news(task, hook)
            number = hook.attempt or await self.attempt_with(task, news)
            await self._after(task, news, number, also=(digesting,), holder=False, learned_by=CALLBACK)

    async def attempt_with(self, task: Task, news: Report) -> int | None:
        """Whose job a callback names that came without the address of an attempt; None where that is not known."""
        attempts = await self.tasks.attempts(task.id) if news.job_id else []
        return next((attempt.number for attempt in attempts if attempt.job_id == news.job_id), None)

    def news(self, task: Task, hook: Hook) -> Report:
        """What a callback says to its task; where it is not believed, that the provider is to be asked."""
        provider = self.providers.get(hook.provider)
        if hook.verdict != "accept" or provider is None:
            return Pending(check_in=0)
        report = provider.parse_callback(json.loads(hook.body))
        return replace(report, job_id=None) if report.job_id == task.id else report

    # -- fetching

    async def fetch(self, task: Task) -> None:
        """Bring home what is not here yet, then decide; a link that seems dead is asked for anew."""
        here = {image.position for image in await self.images.of(task.id, "result")}
        missing = [position for position in range(len(task.outputs)) if position not in here]
        tried = await asyncio.gather(*(self._bring(task, position) for position in missing))
        troubles = [trouble for trouble in tried if trouble is not None]
        if task.tries:
            self.metrics.download_retries.inc(len(missing))
        stored = len(task.outputs) - len(troubles)
        if any(trouble.code == "result_gone" for trouble in troubles):
            await self._ask_for_links(task)
        await self._decide(task, lambda row, now, rules: lifecycle.fetched(row, stored, troubles, now, rules))

    async def _bring(self, task: Task, position: int) -> Trouble | None:
        async with self.downloads:
            begun = self.clock.monotonic()
            try:
                image = await self._bring_in(task, position)
            except (DownloadError, IntakeError, StorageError) as error:
                trouble = _trouble(error)
                self.metrics.downloads.labels(trouble.code).inc()
                log.warning(
                    "a result is not here yet", action="fetch_failed", task=task.id, code=trouble.code, why=str(error)
                )
                return trouble
            self._came_home(image, begun)
        return None

    def _came_home(self, image: StoredImage, begun: float) -> None:
        self.metrics.downloads.labels("stored").inc()
        self.metrics.download_bytes.inc(image.size)
        self.metrics.download_seconds.observe(self.clock.monotonic() - begun)

    async def _bring_in(self, task: Task, position: int) -> StoredImage:
        """Download one result and store it."""
        most = self.max_download_bytes
        async with self.fetcher.open(task.outputs[position], max_bytes=most) as download:
            image = await self.intake.from_stream(task.id, download.chunks, max_bytes=most)
        stored = stored_image(image, owner=task.id, kind="result", position=position, now=self.clock.now())
        await self._keep(task, stored)
        return stored

    async def _keep(self, task: Task, image: StoredImage) -> None:
        """Insert the row of an image, only while the task is in FETCHING: a row must not outlive its bytes."""
        pin = self.tasks.pinning(task.id, State.FETCHING)
        with contextlib.suppress(Stale):
            await self.tasks.database.transact(pin, self.images.adding(image))

    async def _ask_for_links(self, task: Task) -> None:
        """The provider may have fresh links to the same result; not getting them is no news."""
        row, provider = await self.tasks.get(task.id), self.providers.get(task.provider)
        if row is None or provider is None or row.state != State.FETCHING:
            return
        with contextlib.suppress(ProviderError):
            outputs = await self._fresh_links(row, provider)
            if outputs != row.outputs:
                await self._after(row, Finished(outputs=outputs, job_id=row.job_id), row.attempt, holder=False)

    async def _fresh_links(self, task: Task, provider: Provider) -> tuple[str, ...]:
        if task.job_id is not None:
            report = await provider.check(task.job_id)
            if isinstance(report, Finished) and report.outputs and report.outputs != task.outputs:
                return report.outputs
        return tuple([await provider.refresh_url(url) or url for url in task.outputs])

    async def stumble(self, task: Task) -> None:
        """A step that ended in an error nobody foresaw counts as a try, so that it ends some day."""
        trouble = Trouble(code="download_failed", message="an unexpected error; the log has it")
        if task.state == State.WAITING:
            await self._decide(task, lifecycle.unheard)
        elif task.state == State.FETCHING:
            await self._decide(task, lambda row, now, rules: lifecycle.fetched(row, 0, [trouble], now, rules))


def _learned(changes: Changes, learned_by: str | None) -> Changes:
    if learned_by is None or "ended_at" not in changes.attempt:
        return changes
    return replace(changes, attempt={**changes.attempt, "learned_by": learned_by})


def _short_code(code: str | None) -> str:
    """A code fit for a log: what is no plain code may be words."""
    return code if code and re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", code) else "none that is plain"


def _outcome(report: Report) -> str:
    """What became of an order, as a metric calls it."""
    if isinstance(report, Failed) and report.job_id is None:
        return "refused" if report.sent else "not_sent"
    return "accepted"


def _has(row: Task | Attempt | None, values: Mapping[str, Any]) -> bool:
    return row is not None and all(getattr(row, name) == value for name, value in values.items())


def reference_owner(batch: str) -> str:
    """Who owns the references of a batch: not its first task, which may expire before the others."""
    return f"refs_{batch.rpartition('_')[2]}"


def stored_image(image: Image, *, owner: str, kind: Kind, position: int, now: float) -> StoredImage:
    """The row of an image whose bytes are stored, under a public name that nobody can guess."""
    prefix = "generated" if kind == "result" else "reference"
    return StoredImage(
        name=f"{prefix}_{secrets.token_hex(16)}.{image.extension}",
        owner=owner,
        kind=kind,
        position=position,
        blob=image.blob.name,
        media_type=image.media_type,
        size=image.blob.size,
        width=image.width,
        height=image.height,
        sha256=image.blob.sha256,
        created_at=now,
    )


def _output_format(value: str | None) -> Any:
    return value if value in {"png", "jpg"} else None


def _trouble(error: DownloadError | IntakeError | StorageError) -> Trouble:
    if isinstance(error, DownloadError):
        return Trouble(code=error.code, message=str(error))
    if isinstance(error, StorageError) or error.code == "storage_full":
        return Trouble(code="storage_full", message=str(error))
    if error.truncated:
        return Trouble(code="download_failed", message=str(error))
    return Trouble(code="invalid_result", message=str(error))
