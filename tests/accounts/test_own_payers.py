"""Who pays for an order: what the owner's key may have paid is never ordered again with the operator's."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from broker.orders import ImageParams, OrderRequest
from storage.ids import is_own_account, new_user_id
from storage.states import TaskState
from storage.tasks import Lease, Task
from tests.support.brokers import create_tasks, still
from tests.support.clock import ManualClock

pytestmark = pytest.mark.anyio

ALICE = "planted-key-of-alice-0001"


async def test_unknown_outcome_stays_with_the_payer_when_the_key_is_removed_later(
    tmp_path: Path, clock: ManualClock
) -> None:
    async with still(tmp_path, clock, kie_keys="key", resubmit_unknown=True) as services:
        alice, tables = new_user_id(), services.tables
        await services.provider_keys.set_key(alice, "kie", SecretStr(ALICE))
        (task,) = await create_tasks(services, OrderRequest(params=ImageParams(prompt="a fox")), alice)
        assert [is_own_account(name) for name in task.candidates] == [True, False]

        async def claim() -> Task:
            lease = Lease(holder="worker", until=clock.now() + 60)
            (claimed,) = await tables.task_queue.claim(task.provider, now=clock.now(), lease=lease, limit=1)
            return claimed

        step = services.worker.steps.submit
        sent = await claim()
        order = await step.orders.build_order(sent, keeps_history=False)
        own = await services.accounts.find_own(alice)
        begun = await step._begin_submission(sent, order, own[task.provider])
        assert begun is not None
        await services.transitions.record_unknown(begun.task)
        await services.provider_keys.remove_key(alice, "kie")
        clock.advance(3)
        await services.worker.steps.run(await claim())
        ended = await tables.tasks.get(task.id)
        assert ended is not None
        assert (ended.state, ended.error_code) == (TaskState.FAILED, "provider_auth")
        assert ended.billed == "unknown", "or clients repeat the order by themselves"
        assert is_own_account(ended.provider), "it may have been billed to her key, and is never billed to the operator"


async def test_cooldowns_of_other_users_are_not_read(tmp_path: Path, clock: ManualClock) -> None:
    """A provider that is down may pause thousands of keys, and each pause lets all statuses be read again."""
    async with still(tmp_path, clock, kie_keys="key") as services:
        alice, limits = new_user_id(), services.tables.provider_limits
        key, _ = await services.provider_keys.set_key(alice, "kie", SecretStr(ALICE))
        others = [(f"kie@{number:016x}", f"pkey_{number:024x}") for number in range(20)]
        for account, key_id in [(key.account, key.id), *others]:
            cooldown = limits.start_cooldown(account, key_id, clock.now() + 9, "provider_rate_limited")
            await services.database.transact(cooldown)
        assert not (await services.router._load_state()).cooldowns
        statuses = await services.router.statuses_of([key.account, "kie"])
        assert [status.reason for status in statuses.values()] == ["provider_rate_limited", None]
        clock.advance(10)
        assert (await services.router.statuses_of([key.account]))[key.account].is_available
