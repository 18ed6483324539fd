"""Runner of jobs: accepts, works, finishes and sends callbacks; resumes all of it after a restart."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from ssl import SSLContext
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import anyio
import httpx
from anyio import to_thread
from anyio.abc import TaskGroup

from broker.sandbox import painter
from broker.sandbox.callbacks import CallbackDelivery, CallbackFormat, PlannedCallback, plan_callbacks
from broker.sandbox.faults import (
    CANCELED,
    FailureKind,
    Fault,
    FaultName,
    Faults,
    JobFailure,
    UnknownFault,
    parse_fault_setting,
    parse_fault_tags,
    requested_failure,
)
from broker.sandbox.jobs import CallbackAttempt, Files, Job, JobEnd, JobStore, JobView, account_of
from broker.sandbox.orders import JobOrder, RejectedRequest

STAGES = ("waiting", "queuing", "generating")
TIMEOUT_SECONDS = 15.0
WINDOW_SECONDS = 10.0
HTTP_ERRORS = (httpx.HTTPError, httpx.InvalidURL, ValueError)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a sandbox; times in seconds, prices in the provider's unit."""

    dialect: str = "kie"
    """Name of the provider that it emulates."""
    api_key: str | None = None
    """The only key accepted; None accepts any that is not empty."""
    webhook_key: str | None = None
    """The secret that signs callbacks; None: no signature where that is optional, else a secret of the sandbox."""
    duration: float = 1.0
    """From the acceptance of a job to its end."""
    credits: float = 1000.0
    creates_per_window: int = 20
    """In ten seconds, per key."""
    key_windows: Mapping[str, int] = field(default_factory=dict)
    """The same for single keys."""
    refused_keys: Collection[str] = ()
    """Keys that are not accepted although `api_key` would be."""
    are_accounts_apart: bool = False
    """Each key is an account of its own: it finds only the jobs that it ordered."""
    callback_retries: int = 3
    callback_spacing: float = 1.0
    """Before each retry of a callback."""
    mood: str = "good"
    """Faults of every job whose prompt has no tag: "lost", "late:30", or several, "late:30,twice"."""
    data_dir: Path | None = None
    """Folder in which jobs and files survive a restart; None keeps them in memory."""
    now: Callable[[], float] = time.time


class DownloadFailed(Exception):
    """A reference URL without a usable response."""


class JobRunner:
    """All jobs and the work on them."""

    def __init__(self, options: Options, faults: Sequence[FaultName], callbacks: CallbackFormat) -> None:
        self.options = options
        self._known_faults, self._callbacks = faults, callbacks
        self.base_url = ""
        """Address of the sandbox as last requested, for URLs in callbacks."""
        self.store = JobStore(folder=options.data_dir)
        self.files = Files(folder=options.data_dir)
        self.stages: dict[str, str] = {}
        self._default_faults = parse_fault_setting(options.mood, faults)
        self._painters = anyio.CapacityLimiter(1)
        self._recent: defaultdict[str, deque[float]] = defaultdict(deque)
        """Times of the latest creates, by key."""
        self._settled: dict[str, anyio.Event] = {}
        self._work: dict[str, anyio.CancelScope] = {}
        self._tasks: TaskGroup
        self._http: httpx.AsyncClient

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Resume unfinished jobs; on exit running ones are dropped, as in a crash."""
        self.store.load()
        limits = httpx.Limits(max_keepalive_connections=0)
        failure: Exception | None = None
        async with (
            httpx.AsyncClient(
                verify=_tls_context(), trust_env=False, timeout=TIMEOUT_SECONDS, limits=limits
            ) as self._http,
            anyio.create_task_group() as self._tasks,
        ):
            for job in [job for job in self.store.jobs.values() if not job.is_settled]:
                self._start_job(job)
            try:
                yield
            except Exception as error:  # the caller's own error is raised as it is, not in a group
                failure = error
            self._tasks.cancel_scope.cancel()
        if failure:
            raise failure

    def faults_of(self, prompt: str) -> Faults:
        try:
            return parse_fault_tags(prompt, self._known_faults) or self._default_faults
        except UnknownFault as error:
            raise RejectedRequest(422, str(error)) from None

    async def accept(self, order: JobOrder, request: dict[str, Any], key: str) -> Job:
        """Store and start a new job of a key's account. Raises `RejectedRequest`."""
        if order.price > self.credits(reserved=True):
            raise RejectedRequest(402, "The current credits are insufficient. Please top up.")
        self._enter_window(key)
        now, jobs = self.options.now(), self.store.jobs
        seed = json.dumps([now, len(jobs), request])
        job = Job(
            id=hashlib.sha256(seed.encode()).hexdigest()[:32],
            request=request,
            order=order,
            faults=self.faults_of(order.prompt),
            earlier=sum(job.order.prompt == order.prompt for job in jobs.values()),
            created_at=now,
            account=account_of(key),
        )
        await self.store.save_job(job)
        self._start_job(job)
        return job

    def cancel(self, job: Job) -> bool:
        """Stop the work on a job, which then ends as canceled; False if it has ended already."""
        if job.end:
            return False
        self._work[job.id].cancel()
        return True

    def credits(self, *, reserved: bool = False) -> float:
        """Return the remaining credits. reserved: minus the price of unfinished jobs."""
        jobs = self.store.jobs.values()
        spent = sum(job.end.cost for job in jobs if job.end)
        reserved_credits = sum(job.order.price for job in jobs if not job.end) if reserved else 0
        return round(self.options.credits - spent - reserved_credits, 4)

    def _enter_window(self, key: str) -> None:
        now, recent = self.options.now(), self._recent[key]
        while recent and recent[0] <= now - WINDOW_SECONDS:
            recent.popleft()
        if len(recent) >= self.options.key_windows.get(key, self.options.creates_per_window):
            raise RejectedRequest(429, "Rate limit exceeded", status=429)
        recent.append(now)

    def _start_job(self, job: Job) -> None:
        self.stages[job.id] = STAGES[0]
        self._settled[job.id] = anyio.Event()
        self._tasks.start_soon(self._run_job, job)

    async def wait_until_settled(self, job: Job) -> None:
        """Wait until the job has ended and its callbacks are answered or given up."""
        await self._settled[job.id].wait()

    async def _run_job(self, job: Job) -> None:
        if not job.end:
            end = JobEnd(at=0, failure=CANCELED)
            with anyio.CancelScope() as self._work[job.id]:
                end = await self._work_on(job)
            job = await self.store.save_job(replace(job, end=replace(end, at=self.options.now())))
        for number, callback in enumerate(plan_callbacks(self.view(job), f"{self.base_url}/evil/{job.id}.png")):
            job = await self._deliver_callback(job, number, callback)
        await self.store.save_job(replace(job, is_settled=True))
        self._settled[job.id].set()

    def view(self, job: Job) -> JobView:
        """Return what is true about a job."""
        if job.end is None:
            return JobView(job=job, stage=self.stages.get(job.id, STAGES[0]))
        if job.end.failure:
            return JobView(job=job, stage="fail", failure=job.end.failure)
        return JobView(job=job, stage="success", urls=self._result_urls(job))

    def _result_urls(self, job: Job) -> tuple[str, ...]:
        if Fault.PRIVATE_URL in job.faults:
            return ("http://10.0.0.1/x.png",)
        count = int(job.faults.get(Fault.MULTI, job.faults.get(Fault.PARTIAL, job.order.count)))
        return tuple(f"{self.base_url}/p/{job.id}_{number}.{job.suffix}" for number in range(count))

    async def _work_on(self, job: Job) -> JobEnd:
        """1. pass the stages 2. apply a requested failure 3. fetch the references 4. paint the image"""
        duration = 0.0 if Fault.EARLY in job.faults else job.faults.get(Fault.SLOW, self.options.duration)
        left = max(0.0, job.created_at + duration - self.options.now())
        for stage in STAGES:
            self.stages[job.id] = stage
            await anyio.sleep(left / len(STAGES))
        if failure := requested_failure(job.faults, job.earlier):
            return JobEnd(at=0, failure=failure)
        try:
            sizes, thumbnails = await self._fetch_references(job)
        except (DownloadFailed, painter.NotAnImage, OSError) as error:  # OSError: the disk takes no thumbnail
            text = f"Failed to download the reference image: {error}"
            return JobEnd(at=0, failure=JobFailure(kind=FailureKind.REFERENCE, text=text))
        pixels = job.order.pick_size(sizes[0] if sizes else None)
        end = JobEnd(at=0, cost=job.order.price, pixels=pixels, thumbnails=thumbnails)
        await self.paint(job, end, 0)
        return end

    async def _fetch_references(self, job: Job) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
        sizes, names = [], []
        for url in job.order.references:
            size, thumbnail = await to_thread.run_sync(painter.make_thumbnail, await self._fetch_reference(url))
            name = f"thumbnails/{hashlib.sha256(thumbnail).hexdigest()}"
            await self.files.put(name, thumbnail)
            sizes.append(size)
            names.append(name)
        return sizes, tuple(names)

    async def _fetch_reference(self, url: str) -> bytes:
        """Return the bytes of a reference. Raises `DownloadFailed`.

        Uploads are found under any host: a restart may have changed the port.
        """
        if url.startswith("data:"):
            return _decode_data_uri(url)
        path = unquote(urlsplit(url).path)
        own = await self.files.get(path.removeprefix("/files/")) if path.startswith("/files/") else None
        if own:
            return own
        try:
            response = await self._http.get(url)
        except HTTP_ERRORS as error:
            raise DownloadFailed(str(error)) from error
        if response.status_code != 200:
            raise DownloadFailed(f"HTTP {response.status_code}")
        return response.content

    async def paint(self, job: Job, end: JobEnd, index: int) -> bytes:
        if Fault.BIG in job.faults:
            size = int(job.faults[Fault.BIG] * 1024 * 1024)
            noise = await to_thread.run_sync(painter.noise, size, limiter=self._painters)
            return painter.label_png(noise, job.order.prompt)
        options = painter.PaintOptions(
            prompt=job.order.prompt,
            size=end.pixels,
            image_format=job.image_format,
            seed=job.order.seed,
            index=index,
            thumbnails=tuple([await self.files.get(name) or b"" for name in end.thumbnails]),
        )
        return await to_thread.run_sync(painter.paint, options, limiter=self._painters)

    async def _deliver_callback(self, job: Job, number: int, callback: PlannedCallback) -> Job:
        """Send until a 2xx response or the last attempt; attempts before a restart count."""
        earlier = [sent for sent in job.sent if sent.number == number]
        if any(sent.delivered for sent in earlier):
            return job
        if callback.delay and job.end:
            await anyio.sleep(max(0.0, job.end.at + callback.delay - self.options.now()))
        attempts = 1 + self.options.callback_retries if callback.is_retried else 1
        for attempt in range(len(earlier) + 1, attempts + 1):
            await anyio.sleep(self.options.callback_spacing if attempt > 1 else 0)
            now = self.options.now()
            status = await self._send_callback(job, number, callback, now)
            sent = CallbackAttempt(number=number, kind=callback.kind, attempt=attempt, status=status, at=now)
            job = await self.store.save_job(replace(job, sent=(*job.sent, sent)))
            if sent.delivered:
                break
        return job

    async def _send_callback(self, job: Job, number: int, callback: PlannedCallback, now: float) -> int | None:
        # in ASCII: httpx would fail to encode a lone surrogate
        body = json.dumps(self._callbacks.build_body(callback.view)).encode()
        delivery = CallbackDelivery(
            id=f"msg_{job.id}{number:02d}",
            job=job,
            body=body,
            timestamp=int(now - callback.age),
            is_wrong=callback.signature == "wrong",
        )
        signature = {} if callback.signature == "none" else self._callbacks.sign(delivery)
        headers = {"Content-Type": "application/json", **signature}
        try:
            response = await self._http.post(callback.url, headers=headers, content=body)
        except HTTP_ERRORS:
            return None
        return response.status_code


@cache
def _tls_context() -> SSLContext:
    """Return the one context of the process: reading the certificates takes 20 ms."""
    return httpx.create_ssl_context(trust_env=False)


def _decode_data_uri(uri: str) -> bytes:
    head, _, text = uri.partition(",")
    try:
        return base64.b64decode(text, validate=True) if head.endswith(";base64") else unquote_to_bytes(text)
    except ValueError as error:
        raise DownloadFailed(str(error)) from error
