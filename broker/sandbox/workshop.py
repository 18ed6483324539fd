"""A job's way: accepted, worked on, finished, told. All of it resumes after a restart."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
from anyio.abc import TaskGroup

from broker.sandbox import dialect, painter
from broker.sandbox.answers import Picture
from broker.sandbox.jobs import Ending, Files, Job, Ledger, Sent, unfinished
from broker.sandbox.menu import Dish, Refused, checked
from broker.sandbox.moods import FAILURES, Call, Failure, Mood, Moods, UnknownMood, listed, planned, tagged
from broker.sandbox.options import Options

STAGES = ("waiting", "queuing", "generating")


class Busy(Exception):
    """More creates than the window allows; nothing was made."""


class Workshop:
    """Jobs and everything that happens to them behind the doors.

    base_url: where we are reached, for URLs in callbacks. reads: status reads by task id.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.base_url = options.base_url or ""
        self.ledger = Ledger(folder=options.data_dir)
        self.files = Files(folder=options.data_dir)
        self.stages: dict[str, str] = {}
        self.reads: Counter[str] = Counter()
        self._mood = listed(options.mood)
        self._gallery = painter.Gallery()
        self._recent: deque[float] = deque()
        self._ended: dict[str, anyio.Event] = {}
        self._tasks: TaskGroup

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Resumes what was left undone; on the way out everything under way is dropped, as in a crash."""
        self.ledger.load()
        failure: Exception | None = None
        async with anyio.create_task_group() as self._tasks:
            for job in list(unfinished(self.ledger)):
                self._start(job)
            try:
                yield
            except Exception as error:  # the caller's own: it leaves as it came, not in a group
                failure = error
            self._tasks.cancel_scope.cancel()
        if failure:
            raise failure

    def moods(self, prompt: str) -> Moods:
        try:
            return tagged(prompt) or self._mood
        except UnknownMood as error:
            raise Refused(422, str(error)) from None

    async def accept(self, request: dict[str, Any]) -> Job:
        """A new job, remembered and under way. `Refused` or `Busy` when it may not be."""
        dish = checked(request)
        if dish.price > self.credits(reserved=True):
            raise Refused(402, "The current credits are insufficient. Please top up.")
        self._enter_window()
        job = self._job(request, dish)
        await self.ledger.accept(job)
        self._start(job)
        return job

    def credits(self, *, reserved: bool = False) -> float:
        """What is left. reserved: without what the unfinished jobs will cost."""
        jobs = self.ledger.jobs.values()
        spent = sum(job.ending.credits for job in jobs if job.ending)
        bound = sum(job.dish.price for job in jobs if not job.ending) if reserved else 0
        return round(self.options.credits - spent - bound, 4)

    def _enter_window(self) -> None:
        now = self.options.now()
        while self._recent and self._recent[0] <= now - self.options.window:
            self._recent.popleft()
        if len(self._recent) >= self.options.creates_per_window:
            raise Busy
        self._recent.append(now)

    def _job(self, request: dict[str, Any], dish: Dish) -> Job:
        now, jobs = self.options.now(), self.ledger.jobs
        words = json.dumps([now, len(jobs), request])
        return Job(
            task_id=hashlib.sha256(words.encode()).hexdigest()[:32],
            request=request,
            moods=self.moods(dish.prompt),
            earlier=sum(job.dish.prompt == dish.prompt for job in jobs.values()),
            created_at=now,
        )

    def _start(self, job: Job) -> None:
        self.stages.setdefault(job.task_id, STAGES[0])
        self._ended[job.task_id] = anyio.Event()
        self._tasks.start_soon(self._run, job)

    async def settled(self, job: Job) -> None:
        """Returns when the job is over and its callbacks are answered or given up."""
        await self._ended[job.task_id].wait()

    async def _run(self, job: Job) -> None:
        if not job.ending:
            await self._work(job)
        await self._tell(self.ledger.jobs[job.task_id])
        await self.ledger.answered(job.task_id)
        self._ended[job.task_id].set()

    async def _work(self, job: Job) -> None:
        left = max(0.0, job.created_at + self._duration(job) - self.options.now())
        for stage in STAGES:
            self.stages[job.task_id] = stage
            await anyio.sleep(left / len(STAGES))
        ending = await self._ending(job)
        await self.ledger.end(job.task_id, ending)

    def _duration(self, job: Job) -> float:
        return 0.0 if Mood.EARLY in job.moods else job.moods.get(Mood.SLOW, self.options.duration)

    async def _ending(self, job: Job) -> Ending:
        """1. a failure that was asked for; 2. the references; 3. the picture, so that it is painted when asked for."""
        if failure := _failure(job):
            return Ending(at=self.options.now(), failure=failure)
        try:
            sizes, thumbnails = await self._references(job)
        except (OSError, painter.NotAnImage) as error:
            text = f"Failed to download the reference image: {error}"
            return Ending(at=self.options.now(), failure=Failure(code="400", text=text))
        pixels = job.dish.pixels(sizes[0] if sizes else None)
        ending = Ending(at=0, credits=job.dish.price, pixels=pixels, thumbnails=thumbnails)
        await self.picture(job, ending, 0)
        return replace(ending, at=self.options.now())

    async def _references(self, job: Job) -> tuple[list[tuple[int, int]], tuple[str, ...]]:
        sizes, names = [], []
        for url in job.dish.references:
            size, thumbnail = await anyio.to_thread.run_sync(painter.shrink, await self._reference(url))
            name = f"thumbnails/{hashlib.sha256(thumbnail).hexdigest()}"
            await self.files.put(name, thumbnail)
            sizes.append(size)
            names.append(name)
        return sizes, tuple(names)

    async def _reference(self, url: str) -> bytes:
        """Our own uploads are found under any address: a restart may have changed the port."""
        path = unquote(urlsplit(url).path)
        own = await self.files.get(path.removeprefix("/files/")) if path.startswith("/files/") else None
        return own or await self.options.fetch(url)

    async def picture(self, job: Job, ending: Ending, index: int) -> Picture:
        if Mood.BIG in job.moods:
            size = int(job.moods[Mood.BIG] * 1024 * 1024)
            return painter.labelled(await self._gallery.show(size, partial(painter.noise, size)), job.dish.prompt)
        thumbnails = [await self.files.get(name) for name in ending.thumbnails]
        painting = painter.Painting(
            prompt=job.dish.prompt,
            size=ending.pixels,
            image_format=job.image_format,
            seed=job.dish.seed,
            index=index,
            thumbnails=tuple(filter(None, thumbnails)),
        )
        painted = await self._gallery.show(painting, partial(painter.paint, painting))
        return Picture(pieces=(painted,), media_type=f"image/{job.image_format}")

    async def _tell(self, job: Job) -> None:
        for number, call in enumerate(self._calls(job)):
            await self._deliver(job, number, call)

    def _calls(self, job: Job) -> tuple[Call, ...]:
        if not job.callback_url:
            return ()
        body = dialect.callback(job, self.url(job, self.base_url))
        true = Call(kind="true", url=job.callback_url, body=body)
        return planned(true, job.moods, f"{self.base_url}/evil/{job.task_id}.png")

    async def _deliver(self, job: Job, number: int, call: Call) -> None:
        """Until one attempt is answered with a 2xx or all are used up; those before a restart count."""
        earlier = [sent for sent in job.sent if sent.number == number]
        attempts = 1 + self.options.callback_retries if call.persistent else 1
        if any(sent.delivered for sent in earlier):
            return
        await self._wait_until(job, call.delay)
        for attempt in range(len(earlier) + 1, attempts + 1):
            await anyio.sleep(self.options.callback_spacing if attempt > 1 else 0)
            sent = await self._attempt(job, number, call, attempt)
            if sent.delivered:
                return

    async def _wait_until(self, job: Job, delay: float) -> None:
        ended_at = job.ending.at if job.ending else 0.0
        await anyio.sleep(max(0.0, ended_at + delay - self.options.now()) if delay else 0)

    async def _attempt(self, job: Job, number: int, call: Call, attempt: int) -> Sent:
        now = self.options.now()
        headers = dialect.seal(call, self.options.webhook_key, job.task_id, now)
        body = json.dumps(call.body).encode()
        try:
            status = await self.options.post(call.url, {"Content-Type": "application/json", **headers}, body)
        except OSError:
            status = None
        sent = Sent(number=number, kind=call.kind, attempt=attempt, status=status, at=now)
        await self.ledger.sent(job.task_id, sent)
        return sent

    def url(self, job: Job, base: str) -> Callable[[int], str]:
        """The result URL of the picture with a number."""
        return lambda number: f"{base}/p/{job.task_id}_{number}.{job.suffix}"


def _failure(job: Job) -> Failure | None:
    found = (FAILURES[mood](value, job.earlier) for mood, value in job.moods.items() if mood in FAILURES)
    return next(filter(None, found), None)
