"""A broker with callers who have keys of their own at the emulators of providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from broker.accounts.secret_texts import digest_of, new_secret
from broker.sandbox.engine import Options
from broker.sandbox.jobs import account_of
from broker.sandbox.server import serve_sandbox
from broker.services import Services
from storage.accounts.api_keys import ApiKey
from storage.attempts import Attempt
from storage.ids import new_api_key_id
from tests.support.brokers import RunningBroker, open_broker

HOUSE_KEY = "planted-key-of-the-house"
ADMIN_KEY = "planted-admin-key-0123456789"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Someone with an API key and, at some providers, a key of their own."""

    owner: str
    secret: str
    client: httpx.AsyncClient

    async def set_key(self, provider: str, key: str) -> dict[str, Any]:
        answer = await self.client.put(f"/api/me/provider-keys/{provider}", json={"key": key})
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    async def remove_key(self, provider: str) -> None:
        answer = await self.client.delete(f"/api/me/provider-keys/{provider}")
        assert answer.status_code == 204, answer.text

    async def get_key(self, provider: str) -> dict[str, Any]:
        answer = await self.client.get(f"/api/me/provider-keys/{provider}")
        assert answer.status_code == 200, answer.text
        data: dict[str, Any] = answer.json()["data"]
        return data

    async def order(self, prompt: str, **fields: Any) -> str:
        answer = await self.client.post("/api/generate/image", json={"prompt": prompt, **fields})
        assert answer.status_code == 202, answer.text
        task_id: str = answer.json()["taskId"]
        return task_id


@dataclass(frozen=True, kw_only=True)
class Market:
    """A broker, its callers, and emulators that know the key of every job."""

    broker: RunningBroker
    emulators: Emulators
    _clients: list[httpx.AsyncClient] = field(default_factory=list)

    @property
    def services(self) -> Services:
        return self.broker.services

    async def add_caller(self, name: str) -> Caller:
        secret, key_id = new_secret("api_key"), new_api_key_id()
        row = ApiKey(id=key_id, digest=digest_of(secret), prefix=secret[:8], name=name, owner=key_id, created_at=1.0)
        await self.services.database.transact(self.services.tables.api_keys.insert_key(row))
        return Caller(owner=key_id, secret=secret, client=self._client(secret))

    def house(self) -> Caller:
        return Caller(owner="house:", secret=ADMIN_KEY, client=self._client(ADMIN_KEY))

    def rejoin(self, caller: Caller) -> Caller:
        """Return a caller of a broker that ran before on the same database."""
        return replace(caller, client=self._client(caller.secret))

    def _client(self, key: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        base = str(self.broker.client.base_url)
        client = httpx.AsyncClient(base_url=base, headers=headers, timeout=35, verify=False)
        self._clients.append(client)
        return client

    async def jobs(self, provider: str = "kie") -> list[dict[str, Any]]:
        async with httpx.AsyncClient(verify=False) as client:
            answer = await client.get(f"{self.emulators.urls[provider]}/sandbox/jobs")
        found: list[dict[str, Any]] = answer.json()["jobs"]
        return found

    async def keys_of_jobs(self, keys: Collection[str], provider: str = "kie") -> dict[str, str]:
        """Return the key with which each prompt was ordered, by prompt; each prompt was ordered once."""
        names = {account_of(key): key for key in keys}
        jobs = await self.jobs(provider)
        found = {job["prompt"]: names[job["account"]] for job in jobs}
        assert len(found) == len(jobs), "an order was submitted twice"
        return found

    async def attempts(self, task_id: str) -> list[Attempt]:
        return await self.services.tables.attempts.list_of_task(task_id)

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()


def options(**chosen: Any) -> Options:
    defaults: dict[str, Any] = {"duration": 0.05, "callback_spacing": 0.05, "creates_per_window": 1000}
    return Options(**{**defaults, "are_accounts_apart": True, **chosen})


@dataclass(frozen=True, kw_only=True)
class Emulators:
    """Providers that know the key of every job."""

    urls: dict[str, str]
    refused: set[str]
    """Keys that they refuse from now on."""


@asynccontextmanager
async def serve_emulators(
    *, kie: dict[str, Any] | None = None, fal: dict[str, Any] | None = None
) -> AsyncIterator[Emulators]:
    """Serve kie.ai and fal. kie, fal: options of the emulators."""
    refused: set[str] = set()
    async with (
        serve_sandbox(options=options(refused_keys=refused, **(kie or {}))) as kie_url,
        serve_sandbox(options=options(dialect="fal", refused_keys=refused, **(fal or {}))) as fal_url,
    ):
        yield Emulators(urls={"kie": kie_url, "fal": fal_url}, refused=refused)


@asynccontextmanager
async def open_market(
    folder: Path, *, emulators: Emulators | None = None, kie: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Market]:
    """Run the broker with the emulators of kie.ai, at which the operator has a key, and of fal, without one.

    emulators: those that run already. kie: options of its emulator.
    """
    async with AsyncExitStack() as stack:
        served = emulators if emulators is not None else await stack.enter_async_context(serve_emulators(kie=kie))
        kie_url, fal_url = served.urls["kie"], served.urls["fal"]
        defaults: dict[str, Any] = {
            "kie_keys": HOUSE_KEY,
            "api_keys": (ADMIN_KEY,),
            "fal_url": fal_url,
            "fal_rest_url": fal_url,
            "download_allow": tuple(url.removeprefix("http://") for url in served.urls.values()),
        }
        broker = await stack.enter_async_context(open_broker(folder, sandbox=kie_url, **{**defaults, **settings}))
        market = Market(broker=broker, emulators=served)
        stack.push_async_callback(market.aclose)
        yield market
