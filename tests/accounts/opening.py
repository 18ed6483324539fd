"""The account services of one or two processes on one database, with a manual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2

from broker.accounts.passwords import PasswordHasher
from broker.accounts.throttle import LoginClient
from broker.bootstrap import load_settings, open_services
from broker.clock import Clock
from broker.errors import ApiError
from broker.services import Services
from tests.support.api import with_parts

QUICK = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
PASSWORD = "a password of the tests"
HOME = LoginClient(agent="Firefox", address="198.51.100.7")


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Two brokers on one database."""

    one: Services
    two: Services

    @property
    def hashes(self) -> int:
        """How often argon2id ran, in both."""
        return sum(count_hashes(services) for services in (self.one, self.two))


def count_hashes(services: Services) -> int:
    return int(services.metrics.registry.get_sample_value("broker_password_hashes_total") or 0)


@asynccontextmanager
async def open_accounts(
    folder: Path, clock: Clock, *, hashing: argon2.PasswordHasher | None = None, **settings: Any
) -> AsyncIterator[Services]:
    """hashing: other parameters than argon2id has in the product, which takes 35 ms."""
    defaults: dict[str, Any] = {"tunnel_api": "http://127.0.0.1:9", "data_dir": folder, "kie_keys": "a-key"}
    chosen = load_settings(env_file=None, **{**defaults, **settings})
    async with open_services(chosen, clock=clock, joins=False) as services:
        parts = {"passwords": PasswordHasher(metrics=services.metrics, argon2id=hashing)} if hashing else {}
        yield with_parts(services, **parts)


@asynccontextmanager
async def open_processes(folder: Path, clock: Clock, **settings: Any) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(open_accounts(folder, clock, **settings))
        yield Processes(one=one, two=await stack.enter_async_context(open_accounts(folder, clock, **settings)))


async def outcome_of(services: Services, name: str, password: str, client: LoginClient = HOME) -> str:
    """Return `ok`, or the code of the error of a login with a cookie."""
    try:
        await services.logins.log_in_with_cookie(name, password, client)
    except ApiError as error:
        return error.code
    return "ok"
