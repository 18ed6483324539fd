"""The step of FETCHING: blocked addresses, answers that are no image, and images above a limit."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from broker.orders import ImageParams, OrderRequest
from broker.services import Services
from storage.attempts import Attempt
from storage.states import TaskState
from storage.tasks import Lease, Task
from tests.contracts.providers import JOB, Canned, Upstream
from tests.support import samples as s
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock
from tests.support.servers.pictures import Pictures, serving_pictures

pytestmark = pytest.mark.anyio

PRIVATE = "http://10.0.0.1/x.png"
NOT_MADE_HERE = Canned(status=422, body={"code": 422, "msg": "the url was not generated here"})


@pytest.fixture
async def kie() -> AsyncIterator[Upstream]:
    async with Upstream().open() as upstream:
        yield upstream


@pytest.fixture
async def pictures() -> AsyncIterator[Pictures]:
    async with serving_pictures() as served:
        yield served


def record(*urls: str) -> Canned:
    """The provider's answer to a check."""
    data = {"taskId": JOB, "state": "success", "resultJson": json.dumps({"resultUrls": urls})}
    return Canned(body={"code": 200, "msg": "success", "data": data})


def fresh_link(url: str) -> Canned:
    return Canned(body={"code": 200, "msg": "success", "data": url})


def opened(
    folder: Path, clock: ManualClock, kie: Upstream, pictures: Pictures, **settings: Any
) -> AbstractAsyncContextManager[Services]:
    return still(folder, clock, api_url=kie.url, download_allow=(pictures.host,), **settings)


async def begin_download(services: Services, clock: ManualClock, *urls: str) -> str:
    """Return the id of a task whose job has ended with these results."""
    (task,) = await create_tasks(services, OrderRequest(params=ImageParams(prompt="a red bicycle")))
    changes = {"state": TaskState.FETCHING, "attempt": 1, "job_id": JOB, "outputs": urls, "due_at": clock.now()}
    update = services.tables.tasks.update_task(task, **changes, deadline_at=clock.now() + 900)
    await services.database.transact(update)
    return task.id


async def insert_attempts(services: Services, *attempts: Attempt) -> None:
    for attempt in attempts:
        columns, values = ", ".join(vars(attempt)), ", ".join(f":{name}" for name in vars(attempt))
        await services.database.execute(f"INSERT INTO attempts ({columns}) VALUES ({values})", **vars(attempt))


async def run_step(services: Services, clock: ManualClock, *, wait: float = 7200) -> Task:
    """Run the step of the one task after `wait` seconds, and return the task then."""
    tasks = services.tables.tasks
    clock.advance(wait)
    lease = Lease(holder="worker", until=clock.now() + 30)
    (task,) = await tasks.claim(TaskState.FETCHING, now=clock.now(), lease=lease, limit=1)
    await services.worker.steps.run(task)
    after = await tasks.get(task.id)
    assert after is not None
    return after


async def run_first_step(services: Services, clock: ManualClock, *urls: str) -> Task:
    await begin_download(services, clock, *urls)
    return await run_step(services, clock, wait=0)


async def test_blocked_address_ends_the_task_at_once_if_the_provider_has_no_other(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    kie.respond(record(PRIVATE), NOT_MADE_HERE)
    async with opened(tmp_path, clock, kie, pictures) as services:
        task = await run_first_step(services, clock, PRIVATE)
        assert (task.status, task.error_code) == ("failed", "invalid_result")
        assert "BROKER_DOWNLOAD_ALLOW" in (task.error_detail or "")
        assert [request.path for request in kie.received] == ["/api/v1/jobs/recordInfo", "/api/v1/common/download-url"]
        again = await run_step(services, clock)
        assert again.state == TaskState.FETCHING, "the address may be allowed by then"
        assert len(kie.received) == 2


async def test_fresh_link_instead_of_a_blocked_address_is_downloaded_at_once(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    kie.respond(record(pictures.put("a.png", s.PNG)))
    async with opened(tmp_path, clock, kie, pictures) as services:
        assert (await run_first_step(services, clock, PRIVATE)).status == "completed"


async def test_fresh_link_of_an_earlier_attempt_is_not_counted_for_the_later_one(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    """The late success of the first attempt is downloaded, while the job of the second goes on."""
    kie.respond(record(pictures.put("a.png", s.PNG)))
    async with opened(tmp_path, clock, kie, pictures) as services:
        task_id = await begin_download(services, clock, PRIVATE)
        task = await services.tables.tasks.get(task_id)
        assert task is not None
        key: dict[str, Any] = {"task_id": task_id, "key_id": "key", "sent_at": clock.now(), "price": 4.0}
        await insert_attempts(
            services,
            Attempt(**key, number=1, provider="kie", job_id=JOB, outcome="succeeded", billed="yes"),
            Attempt(**key, number=2, provider="wavespeed", job_id="other", outcome="accepted"),
        )
        await services.database.transact(services.tables.tasks.update_task(task, attempt=2, key_id="key"))
        assert (await run_step(services, clock, wait=0)).status == "completed"
        _, second = await services.tables.attempts.list_of_task(task_id)
        assert (second.outcome, second.duplicate_result, second.duplicate_cost) == ("accepted", None, None)


async def test_fresh_link_that_is_blocked_too_ends_the_task(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    """A provider that always has another one is asked once."""
    kie.respond(record(PRIVATE), fresh_link("http://10.0.0.2/x.png"))
    async with opened(tmp_path, clock, kie, pictures) as services:
        assert (await run_first_step(services, clock, PRIVATE)).status == "failed"
        await run_step(services, clock)
        assert len(kie.received) == 2


async def test_blocked_address_is_tried_again_if_the_provider_cannot_be_asked(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    kie.respond(Canned(status=503), record(pictures.put("a.png", s.PNG)))
    async with opened(tmp_path, clock, kie, pictures) as services:
        task = await run_first_step(services, clock, PRIVATE)
        assert (task.status, task.step_retries) == ("processing", 1)
        assert (await run_step(services, clock)).status == "completed"


async def test_blocked_address_beside_a_good_one_is_a_partial_success(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    urls = pictures.put("a.png", s.PNG), PRIVATE
    kie.respond(record(*urls), NOT_MADE_HERE, NOT_MADE_HERE)
    async with opened(tmp_path, clock, kie, pictures) as services:
        task = await run_first_step(services, clock, *urls)
        assert task.status == "completed"
        assert len(await services.tables.images.list_of_owner(task.id, "result")) == 1


async def test_answer_that_is_no_image_is_tried_again(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    """File servers lag: a page of theirs becomes the image."""
    url = pictures.put("a.png", b"<html>not yet</html>")
    async with opened(tmp_path, clock, kie, pictures) as services:
        assert (await run_first_step(services, clock, url)).status == "processing"
        pictures.put("a.png", s.PNG)
        assert (await run_step(services, clock)).status == "completed"
    assert kie.received == []


async def test_paid_image_above_the_decode_limit_is_stored_after_the_limit_is_raised(
    tmp_path: Path, clock: ManualClock, kie: Upstream, pictures: Pictures
) -> None:
    url = pictures.put("a.webp", s.WEBP)
    async with opened(tmp_path, clock, kie, pictures, max_decode_bytes=1000) as services:
        await begin_download(services, clock, url)
        task = await run_step(services, clock)
        assert (task.status, task.error_code, task.state) == ("failed", "invalid_result", TaskState.FETCHING)
        assert "BROKER_MAX_DECODE_BYTES" in (task.error_detail or "")
    async with opened(tmp_path, clock, kie, pictures) as services:
        assert (await run_step(services, clock)).status == "completed"
