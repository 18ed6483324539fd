"""The registry: which providers are open, and by which key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from broker.bootstrap import load_settings
from broker.net.api_client import ApiClient
from broker.providers.base import key_id_of
from broker.providers.registry import ProviderRegistry, load_catalog
from broker.providers.signing_keys import FixedKeys
from webhooks.signatures.base import Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client() -> AsyncIterator[ApiClient]:
    client = ApiClient(timeout=1.0, max_connections=1)
    yield client
    await client.aclose()


def open_registry(client: ApiClient, **settings: Any) -> ProviderRegistry:
    chosen = load_settings(isolated=True, **settings)
    return ProviderRegistry(settings=chosen, client=client, catalog=load_catalog(), now=lambda: 0.0)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["sandbox"]),
        ({"api_url": "https://relay.example/nano-banana"}, ["sandbox"]),
        ({"kie_keys": "k"}, ["kie"]),
        ({"kie_keys": "k", "api_url": "https://relay.example/nano-banana"}, ["legacy"]),
    ],
)
async def test_upstream_url_and_key_select_one_provider(
    client: ApiClient, settings: dict[str, Any], names: list[str]
) -> None:
    registry = open_registry(client, **settings)
    assert list(registry.open_all()) == names
    assert [provider.name for provider in registry.open_all().values()] == names


async def test_sandbox_has_the_operation_ids_of_the_api_that_it_speaks(client: ApiClient) -> None:
    """A client generated with the sandbox keeps its names with a key."""
    apis = [
        [one.preferred.api_name for one in open_registry(client, **key).open_all().values()]
        for key in ({}, {"kie_keys": "k"})
    ]
    assert apis == [["kie"], ["kie"]]


async def test_each_key_of_a_pool_has_an_adapter_of_its_own(client: ApiClient) -> None:
    pool = open_registry(client, kie_keys="first, second").open("kie")
    first, second = (key_id_of(SecretStr(key)) for key in ("first", "second"))
    assert {key_id: one.key_id for key_id, one in pool.accounts.items()} == {first: first, second: second}
    assert pool.bound_to(second) is pool.accounts[second]
    assert pool.bound_to("of a key that was rotated") is pool.preferred
    with pytest.raises(KeyError):
        open_registry(client, kie_keys="first").open("legacy")


async def test_key_ids_do_not_depend_on_the_order_of_the_keys(client: ApiClient) -> None:
    one, other = (open_registry(client, kie_keys=keys).open("kie") for keys in ("a,b", "b,a"))
    assert set(one.accounts) == set(other.accounts)
    assert all("a" != key_id != "b" for key_id in one.accounts)


async def test_limits_come_from_the_catalog_unless_settings_override_them(client: ApiClient) -> None:
    documented = open_registry(client, kie_keys="k").open("kie").preferred
    assert (documented.creates_per_10s, documented.concurrency) == (20, 100)
    chosen = open_registry(client, kie_keys="k", creates_per_10s=7, max_concurrent=3).open("kie").preferred
    assert (chosen.creates_per_10s, chosen.concurrency) == (7, 3)


async def test_webhook_key_configures_the_signature(client: ApiClient) -> None:
    assert open_registry(client, kie_keys="k").signatures == {"kie": FixedKeys(Unsigned())}
    (signature,) = open_registry(client, kie_keys="k", webhook_key="w").signatures.values()
    assert isinstance(signature, FixedKeys)
    assert isinstance(signature.signature, JobIdHmac)
    assert signature.required
