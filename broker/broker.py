"""The broker: what every door talks to. It takes orders, tells how they are, and hears what providers call to say."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from broker.catalog import Catalog, Choice
from broker.clock import Clock, day
from broker.errors import DownloadError, EgressBlocked, ProviderError, Refusal
from broker.logs import log
from broker.metrics import Metrics
from broker.net.fetcher import Fetcher
from broker.orders import DataUri, Kept, Link, Order, Reference, Request, Source, Upload
from broker.pacing import CallerPace
from broker.presenter import TaskPresenter
from broker.providers.base import Provider
from broker.repeats import InTurn
from broker.reports import Pending, Report
from broker.tasks import lifecycle
from broker.tasks.eta import EtaEstimator
from broker.tasks.images import stored_image
from broker.tasks.orders import OrderBuilder
from broker.tasks.policy import TaskPolicy
from broker.tasks.transitions import Transitions
from broker.thumbnails import Thumbnails
from storage.blobs.store import BlobMissing, BlobStore, Reading
from storage.callbacks import Hook, Hooks
from storage.deliveries import Deliveries, Delivery
from storage.errors import StorageError, StorageFull
from storage.idempotency import Keys, KeyUse
from storage.ids import BATCH_ID, EVENT_ID, TASK_ID, new_batch_id, new_callback_id, new_task_id, reference_owner
from storage.images import Images, StoredImage
from storage.sql.database import Database, Stale
from storage.states import LANDING, State
from storage.tasks import DUE, Task, Tasks, task_channel
from uploads.intake import Image, Intake, IntakeError
from webhooks import verification
from webhooks.signatures.base import Proof, Signature, Unsigned
from webhooks.tokens import CallbackTokens
from webhooks.verification import Decision, Evidence, IncomingCallback, Verification

MOST_IMAGES: Final = 6
MOST_UNREAD_HOOKS: Final = 20
MOST_REFUSED_PER_MINUTE: Final = 120
MOST_CALLBACK_URL: Final = 2048
LOOK_AGAIN_SECONDS: Final = 2.0
MOST_CLOCK_DRIFT: Final = 300.0
OLDEST_NEWS: Final = 14 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Created:
    """The tasks of one request, durable. ignored: fields the provider cannot use. repeated: an earlier answer again."""

    tasks: tuple[Task, ...]
    ignored: tuple[str, ...] = ()
    repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What a request costs by the catalog, and what its caller should know. price: of one image; None = not known."""

    price: float | None
    count: int
    unit: str | None
    warnings: tuple[str, ...]

    @property
    def total(self) -> float | None:
        return None if self.price is None else self.price * self.count


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What became of a callback. id: in the inbox; None if a flood kept it out."""

    judgement: Decision
    id: str | None


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A callback after it was read. body: parsed; None where it cannot be."""

    judgement: Decision
    proofs: Evidence
    task: Task | None = None
    attempt: int | None = None
    body: Any = None


@dataclass(kw_only=True)
class Broker:
    """One object for all doors; knows no HTTP. caller_fetcher: knows which callers' addresses we may call."""

    clock: Clock
    policy: TaskPolicy
    catalog: Catalog
    database: Database
    tasks: Tasks
    images: Images
    hooks: Hooks
    keys: Keys
    deliveries: Deliveries
    blobs: BlobStore
    intake: Intake
    fetcher: Fetcher
    caller_fetcher: Fetcher
    transitions: Transitions
    order_builder: OrderBuilder
    callback_url: Callable[[str, str, int], str | None]
    provider: Provider
    providers: Mapping[str, Provider]
    signatures: Mapping[str, Signature]
    tokens: CallbackTokens
    metrics: Metrics
    pace: CallerPace
    presenter: TaskPresenter
    thumbnails: Thumbnails
    eta: EtaEstimator
    max_file_size: int
    closing: bool = False
    _refused: CallerPace = field(init=False)
    _turns: InTurn = field(default_factory=InTurn)

    def __post_init__(self) -> None:
        self._refused = CallerPace(MOST_REFUSED_PER_MINUTE, self.clock)

    # -- orders

    async def create(self, caller: str, request: Request) -> Created:
        """Make durable tasks of a request.

        1. Everything that can be wrong is checked. 2. A repeated order gets its first answer. 3. References are
        brought in. 4. Tasks, references and the idempotency key are written together. Raises `Refusal`; then nothing
        is left behind.
        """
        async with self._turns.of((caller, request.idempotency_key or object())):
            return await self._create(caller, request)

    async def _create(self, caller: str, request: Request) -> Created:
        choice = self._check(request)
        first = await self.keys.get(caller, request.idempotency_key) if request.idempotency_key else None
        if first is not None:
            return await self._again(first, await _fingerprint(request, self._order(request, choice)))
        self.pace.take(caller, request.count)
        await self._check_callback(request.callback_url)
        batch = new_batch_id()
        owner = reference_owner(batch)
        kept = False
        try:
            most = self._most_bytes(choice)
            references = [
                await self._bring_in(owner, position, source, most) for position, source in enumerate(request.sources)
            ]
            created = await self._write(caller, request, choice, batch, references)
            kept = not created.repeated
        except (IntakeError, DownloadError) as error:
            raise _refusal(error) from error
        except (StorageError, asyncio.CancelledError) as error:
            kept = True  # nobody knows whether it was written; the sweep removes what belongs to no task
            if isinstance(error, StorageFull):
                raise _refusal(error) from error
            raise
        finally:
            if request.sources and not kept:
                await self.blobs.delete(owner)
        return created

    async def fingerprint(self, request: Request) -> str:
        """What makes a repeated request the same one. Reads the uploads, which can be read again. Raises `Refusal`."""
        return await _fingerprint(request, self._order(request, self._check(request)))

    async def failed_order(self, task_id: str) -> tuple[str, Request]:
        """Who ordered a failed task, and what, to be ordered again; while that is under way it is one new task.

        Raises `Refusal("conflict")` for a task that did not fail, or whose image is paid and may still come.
        """
        task = await self._last_try(await self.get(task_id))
        if task.status not in {"failed", "canceled"}:
            which = "this one" if task.id == task_id else f"its last try, {task.id},"
            raise Refusal("conflict", f"Only a failed or canceled task can be tried again: {which} is {task.status}.")
        if task.state in LANDING:
            raise Refusal("conflict", "The provider has this image, and we are still fetching it: look again later.")
        return task.caller, _request_of(task)

    async def _last_try(self, task: Task) -> Task:
        """The task that is worth another try: the last one that was tried for it and failed, too."""
        while (use := await self.keys.get(task.caller, _retry_key(task))) is not None:
            tasks = await self.tasks.of_batch(use.batch)
            if not tasks or not tasks[0].ended or tasks[0].state == State.EXPIRED:
                return task
            task = tasks[0]
        return task

    def quote(self, request: Request) -> Quote:
        """Raises `Refusal` for what `create` would refuse for its fields."""
        order = self._order(request, self._check(request))
        offer = self.provider.build_request(order, None)
        return Quote(
            price=offer.get("price"),
            count=request.count,
            unit=offer.get("unit"),
            warnings=self.catalog.warnings(request.model, day(self.clock.now())),
        )

    async def preview(self, request: Request) -> dict[str, Any]:
        """What would be sent to the provider, and its price. Raises `Refusal` where `create` would.

        Images that came along are looked at and forgotten; those at an address are not fetched. Nothing is created.
        """
        quote, choice = self.quote(request), self._check(request)
        await self._check_callback(request.callback_url)
        await self._look_at(request.sources, self._most_bytes(choice))
        base = self.order_builder.image_base()
        references = tuple(
            Reference(
                name=f"reference-{n}",
                media_type="image/png",
                size=0,
                sha256="",
                url=f"{base}/uploads/references/reference-{n}" if base else None,
                read=_nothing,
            )
            for n in range(1, len(request.sources) + 1)
        )
        order = self._order(request, choice, references)
        callback = self.callback_url(self.provider.name, "task_dry_run", 1)
        address = callback.split("?")[0] if callback else None
        return {
            **self.provider.build_request(order, address),
            "count": quote.count,
            "total": quote.total,
            "warnings": list(quote.warnings),
            "ignored": list(self.provider.ignored(order)),
        }

    async def _look_at(self, sources: Sequence[Source], most: int) -> None:
        """The same way in as for an order, and out again."""
        owner = reference_owner(new_batch_id())
        sent = [source for source in sources if not isinstance(source, Link)]
        try:
            for source in sources:
                if isinstance(source, Link):
                    self.fetcher.check_url(source.url)
                else:
                    await self._take_in(owner, source, most)
        except (IntakeError, DownloadError, StorageFull) as error:
            raise _refusal(error) from error
        finally:
            if sent:
                await self.blobs.delete(owner)

    def _most_bytes(self, choice: Choice) -> int:
        """Of one reference: our limit, or the model's own if that is lower."""
        return min(self.max_file_size, choice.model.max_reference_bytes)

    def _check(self, request: Request) -> Choice:
        if not 1 <= request.count <= MOST_IMAGES:
            raise Refusal(
                "invalid_request",
                f"numberOfImages must be from 1 to {MOST_IMAGES}.",
                field="numberOfImages",
            )
        choice = self.catalog.check(
            prompt=request.prompt,
            model=request.model,
            mode=request.mode,
            aspect_ratio=request.aspect_ratio,
            resolution=request.resolution,
            output_format=request.output_format,
            references=len(request.sources),
        )
        if not self.provider.supports(choice.model.name):
            raise Refusal(
                "unsupported_parameter",
                f"The provider in use ({self.provider.name}) does not serve {choice.model.name}.",
                field="model",
            )
        return choice

    async def _check_callback(self, url: str | None) -> None:
        """Told at once, to whoever can mend it; the guard is where we call."""
        if url is None:
            return
        try:
            if len(url) > MOST_CALLBACK_URL:
                raise EgressBlocked(f"the address is longer than {MOST_CALLBACK_URL} characters")
            await self.caller_fetcher.validate(url)
        except EgressBlocked as error:
            raise Refusal(
                "invalid_request",
                f"callbackUrl is not an address that we call: {error}. "
                "Use a public https:// address, without user name and on the usual port.",
                field="callbackUrl",
            ) from error

    @staticmethod
    def _order(request: Request, choice: Choice, references: tuple[Reference, ...] = ()) -> Order:
        return Order(
            prompt=request.prompt,
            model=choice.model.name,
            mode=choice.mode,
            aspect_ratio=choice.aspect_ratio,
            resolution=choice.resolution,
            output_format=choice.output_format,
            references=references,
            steps=request.steps,
            seed=request.seed,
        )

    async def _bring_in(self, owner: str, position: int, source: Source, most: int) -> StoredImage:
        image = await self._take_in(owner, source, most)
        return stored_image(image, owner=owner, kind="reference", position=position, now=self.clock.now())

    async def _take_in(self, owner: str, source: Source, most: int) -> Image:
        match source:
            case Upload(chunks=chunks):
                return await self.intake.from_stream(owner, chunks, max_bytes=most)
            case DataUri(text=text):
                return await self.intake.from_data_uri(owner, text, max_bytes=most)
            case Kept(blob=blob):
                async with aclosing(await self._open_kept(blob)) as chunks:
                    return await self.intake.from_stream(owner, chunks, max_bytes=most)
            case Link(url=url):
                async with self.fetcher.open(url, max_bytes=most) as download:
                    return await self.intake.from_stream(owner, download.chunks, max_bytes=most)

    async def _open_kept(self, blob: str) -> Reading:
        try:
            return await self.blobs.open(blob)
        except BlobMissing as error:
            raise Refusal("task_expired", "The reference images of this task are deleted: order it anew.") from error

    async def _write(
        self, caller: str, request: Request, choice: Choice, batch: str, references: list[StoredImage]
    ) -> Created:
        order = self._order(request, choice)
        alike = replace(self._task(batch, caller, order, references), callback_url=request.callback_url)
        ids = sorted(new_task_id() for _ in range(request.count))  # as a batch is read again
        tasks = tuple(replace(alike, id=task_id) for task_id in ids)
        statements = [self.tasks.adding(task) for task in tasks]
        statements += [self.images.adding(reference) for reference in references]
        use = await self._key_use(caller, request, order, batch, references)
        if use is not None:
            statements.insert(0, self.keys.using(use))
        try:
            await self.database.transact(*statements, wake=(DUE,))
        except Stale:
            first = await self._first(use)
            if first.batch != batch:
                return await self._again(first, use.fingerprint if use else "")
        log.info(
            "order accepted",
            action="task_created",
            task=tasks[0].id,
            count=len(tasks),
            model=order.model,
            mode=order.mode,
        )
        return Created(tasks=tasks, ignored=self.provider.ignored(order))

    def _task(self, batch: str, caller: str, order: Order, references: list[StoredImage]) -> Task:
        """One of a batch, but for its id."""
        now = self.clock.now()
        return Task(
            id="",
            batch=batch,
            caller=caller,
            due_at=now,
            provider=self.provider.name,
            model=order.model,
            mode=order.mode,
            prompt=order.prompt,
            aspect_ratio=order.aspect_ratio,
            resolution=order.resolution,
            output_format=order.output_format,
            steps=order.steps,
            seed=order.seed,
            refs=tuple(_as_ref(reference) for reference in references),
            deadline_at=now + self.policy.queue_seconds,
            created_at=now,
            updated_at=now,
            entered_at=now,
        )

    async def _key_use(
        self, caller: str, request: Request, order: Order, batch: str, references: list[StoredImage]
    ) -> KeyUse | None:
        if request.idempotency_key is None:
            return None
        return KeyUse(
            caller=caller,
            key=request.idempotency_key,
            fingerprint=await _fingerprint(request, order, references),
            batch=batch,
            created_at=self.clock.now(),
        )

    async def _first(self, use: KeyUse | None) -> KeyUse:
        """Who has the key: of two equal orders at once the quicker one – or we, if the connection broke too late."""
        first = await self.keys.get(use.caller, use.key) if use else None
        if first is None:
            raise StorageError("the order could not be written")
        return first

    async def _again(self, first: KeyUse, fingerprint: str) -> Created:
        """The answer that was given when this key was used first."""
        if first.fingerprint != fingerprint:
            raise Refusal(
                "idempotency_mismatch",
                "This Idempotency-Key was used for another request. Use a new key for a new request.",
                field="Idempotency-Key",
            )
        tasks = await self.tasks.of_batch(first.batch)
        if not tasks:
            raise Refusal("task_expired", "This Idempotency-Key was used for a task that is deleted. Use a new key.")
        order = self.order_builder.build_order(tasks[0])
        return Created(tasks=tuple(tasks), ignored=self.provider.ignored(order), repeated=True)

    # -- tasks

    async def get(self, task_id: str) -> Task:
        """Raises `Refusal`: task_not_found, or task_expired while we remember that there was one."""
        task = await self.tasks.get(task_id) if TASK_ID.fullmatch(task_id) else None
        if task is None:
            raise Refusal("task_not_found", "There is no task with this id. Check the id, or create the task again.")
        if task.state == State.EXPIRED:
            raise Refusal("task_expired", "This task and its images were deleted when their retention time was over.")
        return task

    async def batch(self, batch_id: str) -> list[Task]:
        """The tasks of one request, as far as they are kept. Raises `Refusal` like `get`."""
        tasks = await self.tasks.of_batch(batch_id) if BATCH_ID.fullmatch(batch_id) else []
        if not tasks:
            raise Refusal("task_not_found", "There is no batch with this id. Check the id, or create the tasks again.")
        kept = [task for task in tasks if task.state != State.EXPIRED]
        if not kept:
            raise Refusal("task_expired", "The tasks of this batch were deleted when their retention time was over.")
        return kept

    async def version(self, task_id: str) -> int | None:
        """The row's version, or None for ids that are none; cheap."""
        return await self.tasks.version(task_id) if TASK_ID.fullmatch(task_id) else None

    async def results(self, task: Task) -> list[StoredImage]:
        """The images of a completed task, in order."""
        return await self.images.of(task.id, "result") if task.state == State.SUCCEEDED else []

    async def origin(self, image: StoredImage) -> list[Task]:
        """The tasks an image comes from: the one that made it, or those of the request it was a reference of."""
        return await self.tasks.of_owner(image.owner)

    async def wait(self, task_id: str, seconds: float) -> Task:
        """The task as soon as it has ended, or as it is after `seconds`, or when the broker closes."""
        until = self.clock.monotonic() + seconds
        with self.database.listen(task_channel(task_id)) as bell:
            while True:
                task = await self.get(task_id)
                left = until - self.clock.monotonic()
                if task.ended or self.closing or left <= 0:
                    return task
                await bell.wait(min(left, LOOK_AGAIN_SECONDS))

    async def wait_for_batch(self, batch_id: str, seconds: float) -> None:
        """Until all tasks of a batch have ended, `seconds` are over, or the broker closes."""
        until = self.clock.monotonic() + seconds
        for task in await self.batch(batch_id):
            with suppress(Refusal):  # deleted meanwhile: the others are still worth waiting for
                await self.wait(task.id, max(0.0, until - self.clock.monotonic()))

    async def changes(self, task_id: str) -> AsyncGenerator[Task, None]:
        """The task now, and again whenever it may have changed, until it ends or the broker closes.

        Who stops before the end closes it (`contextlib.aclosing`).
        """
        with self.database.listen(task_channel(task_id)) as bell:
            while not self.closing:
                task = await self.get(task_id)
                yield task
                if task.ended:
                    return
                await bell.wait(LOOK_AGAIN_SECONDS)

    async def newest(self, *, status: str | None, limit: int, before: tuple[float, str] | None) -> list[Task]:
        return await self.tasks.newest(status=status, limit=limit, before=before)

    async def cancel(self, task_id: str) -> Task:
        """Raises `Refusal("conflict")` when the task has ended or its image is already on its way."""
        task = await self.get(task_id)
        if task.ended:
            raise Refusal("conflict", f"This task has ended: it is {task.status}.")
        await self.transitions.apply(
            task, lambda row, _: lifecycle.cancel(row, self.clock.now(), self.policy), is_leased=False
        )
        task = await self.get(task_id)
        if task.state != State.CANCELED:
            raise Refusal("conflict", f"This task cannot be canceled any more: it is {task.status}.")
        await self._cancel_at_provider(task)
        return task

    async def cancel_batch(self, batch_id: str) -> list[Task]:
        """Cancel what can be; the tasks as they are then. Raises `Refusal("conflict")` when nothing could be."""
        canceled = 0
        for task in await self.batch(batch_id):
            try:
                await self.cancel(task.id)
            except Refusal as refusal:
                if refusal.code != "conflict":
                    raise
            else:
                canceled += 1
        if not canceled:
            raise Refusal("conflict", "No task of this batch can be canceled any more.")
        return await self.batch(batch_id)

    async def _cancel_at_provider(self, task: Task) -> None:
        provider = self.providers.get(task.provider)
        if provider is None or task.job_id is None:
            return
        try:
            await provider.cancel(task.job_id)
        except ProviderError as error:
            log.info("the provider could not be told", action="cancel_untold", task=task.id, why=error.summary)

    # -- webhooks to callers

    async def delivery(self, delivery_id: str) -> Delivery:
        """Raises `Refusal`."""
        delivery = await self.deliveries.get(delivery_id) if EVENT_ID.fullmatch(delivery_id) else None
        if delivery is None:
            raise Refusal("not_found", "There is no delivery with this id. Finished ones are deleted with their tasks.")
        return delivery

    async def replay(self, delivery_id: str) -> Delivery:
        """Tell a caller again, whatever became of it before."""
        await self.delivery(delivery_id)
        await self.deliveries.replay(delivery_id, self.clock.now())
        return await self.delivery(delivery_id)

    # -- callbacks

    async def hear(self, callback: IncomingCallback) -> Heard:
        """Judge a callback and write it down; a worker reads its news afterwards."""
        provider = self.providers.get(callback.provider, self.provider)
        signature = self.signatures.get(provider.name, Unsigned())
        token, task_id, attempt = self._token(callback)
        required = signature.required and token == Proof.NONE
        proofs = Evidence(token=token, signature_required=required, trusted=callback.trusted)
        try:
            body = verification.parse_callback_body(callback) if token != Proof.WRONG else None
        except verification.MalformedBody as malformed:
            judgement = Decision(verification=Verification.MALFORMED, status=malformed.status, reason=malformed.reason)
            return await self._note(callback, provider, _Judged(judgement=judgement, proofs=proofs, attempt=attempt))
        ids = provider.job_ids(body) if body is not None else ()
        task = await self.addressee(task_id, ids, token) if token != Proof.WRONG else None
        signed = signature.verify(callback.headers, callback.body, ids, self.clock.now())
        proofs = replace(proofs, signature=signed, known=task is not None)
        judged = _Judged(judgement=verification.decide(proofs), proofs=proofs, task=task, attempt=attempt, body=body)
        return await self._note(callback, provider, judged)

    def _token(self, callback: IncomingCallback) -> tuple[Proof, str | None, int | None]:
        """What the token in the address proves, and for which task and attempt."""
        task_id = callback.query.get("task")
        token = callback.query.get("token")
        if token is None:
            return Proof.NONE, task_id, None
        number = callback.query.get("attempt", "")
        if task_id is None or not re.fullmatch(r"[1-9][0-9]{0,5}", number):
            return Proof.WRONG, None, None
        return self.tokens.verify(task_id, int(number), token), task_id, int(number)

    async def addressee(self, task_id: str | None, ids: tuple[str, ...], token: Proof) -> Task | None:
        """The task a callback is about: by its address, else by our id or the provider's in the body.

        A right token speaks for the task of its address, and for no other.
        """
        named = (task_id, *ids) if task_id else ids
        for name in named[:1] if token == Proof.BODY_VERIFIED else named:
            if name is None or len(name) > 200:
                continue
            task = await (self.tasks.get(name) if TASK_ID.fullmatch(name) else self.tasks.of_job(name))
            if task is not None:
                return task
        return None

    async def _note(self, callback: IncomingCallback, provider: Provider, judged: _Judged) -> Heard:
        """Into the inbox. News wakes the workers; what a flood brings is counted and not kept."""
        verdict, task = judged.judgement.verification, judged.task
        self.metrics.callbacks.labels(provider.name, verdict.value).inc()
        is_news = task is not None and verdict in {Verification.ACCEPT, Verification.RECHECK}
        believed = verdict == Verification.ACCEPT
        if not await self._has_place(task if is_news else None, believed=believed):
            return Heard(judgement=judged.judgement, id=None)
        now = self.clock.now()
        hook = Hook(
            id=new_callback_id(),
            provider=task.provider if task else provider.name,
            task_id=task.id if task else None,
            attempt=judged.attempt,
            verdict=verdict.value,
            status=judged.judgement.status,
            reason=judged.judgement.reason,
            headers=verification.stored_headers(callback.headers),
            query=verification.stored_query(callback.query),
            body=verification.stored_body(callback.body, callback.query.get("token")),
            proofs=judged.proofs.to_json(),
            received_at=now,
            digested_at=None if is_news else now,
            job_ended_at=_ended_at(provider.parse_callback(judged.body), now) if is_news else None,
        )
        await self.database.transact(self.hooks.adding(hook), wake=(DUE,) if is_news else ())
        if believed and hook.job_ended_at is not None:
            self.metrics.callback_lag.labels(hook.provider).observe(max(0.0, now - hook.job_ended_at))
        return Heard(judgement=judged.judgement, id=hook.id)

    async def _has_place(self, task: Task | None, *, believed: bool) -> bool:
        """What proves itself always has; what does not must not crowd it out."""
        if task is not None:
            return believed or await self.hooks.count_for(task.id) < MOST_UNREAD_HOOKS
        try:
            self._refused.take("refused", 1)
        except Refusal:
            return False
        return True


def _retry_key(task: Task) -> str:
    """It has a space in it, so it is none that a caller can send."""
    return f"retry {task.id}"


def _request_of(task: Task) -> Request:
    """What a task was ordered with."""
    return Request(
        prompt=task.prompt,
        model=task.model,
        mode=task.mode,
        aspect_ratio=task.aspect_ratio,
        resolution=task.resolution,
        output_format=task.output_format,
        steps=task.steps,
        seed=task.seed,
        sources=tuple(Kept(blob=ref["blob"], sha256=ref["sha256"]) for ref in task.refs),
        callback_url=task.callback_url,
        idempotency_key=_retry_key(task),
    )


def _ended_at(report: Report, now: float) -> float | None:
    """When the job ended, as far as that can be true: clocks differ, and some callbacks name times that never were."""
    said = None if isinstance(report, Pending) else report.ended_at
    return said if said is not None and -MOST_CLOCK_DRIFT < now - said < OLDEST_NEWS else None


def _as_ref(image: StoredImage) -> dict[str, Any]:
    names = ("name", "blob", "media_type", "size", "sha256")
    return {name: getattr(image, name) for name in names}


def _refusal(error: IntakeError | DownloadError | StorageFull) -> Refusal:
    """A reference that could not be brought in, in the words of the API."""
    match error:
        case DownloadError():
            return Refusal("invalid_image", f"A reference image could not be fetched: {error}", field="imageUrls")
        case IntakeError(code="invalid_image" | "payload_too_large" as code):
            return Refusal(code, str(error), field="image")
        case _:
            sentence = "There is no space left to store this. Try again later."
            return Refusal("storage_full", sentence, retryable=True)


async def _fingerprint(request: Request, order: Order, references: Sequence[StoredImage] = ()) -> str:
    """What makes a repeated order the same one: the wish, and the references as they were given.

    references: as stored, if they were brought in already; the uploads among the sources are read otherwise.
    """
    given = [
        await _given(source, references[position] if references else None)
        for position, source in enumerate(request.sources)
    ]
    told = {"callback_url": request.callback_url} if request.callback_url else {}
    content = {**asdict(order), "references": given, "count": request.count, **told}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


async def _given(source: Source, stored: StoredImage | None) -> str:
    match source:
        case Link(url=url):
            return url
        case Kept(sha256=sha256):
            return sha256
        case DataUri(text=text):
            return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        case Upload(chunks=chunks):
            return stored.sha256 if stored else await _hashed(chunks)


async def _hashed(chunks: AsyncIterator[bytes]) -> str:
    digest = hashlib.sha256()
    async for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


async def _nothing() -> AsyncIterator[bytes]:
    for chunk in list[bytes]():
        yield chunk
