"""The registry: which providers are open, and by which key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.bootstrap import load_settings
from broker.net.api_client import ApiClient
from broker.providers.base import DEFAULT_KEY_ID
from broker.providers.registry import ProviderRegistry, load_catalog
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
        ({"api_key": "k"}, ["kie"]),
        ({"api_key": "k", "api_url": "https://relay.example/nano-banana"}, ["legacy"]),
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
        [one.api_name for one in open_registry(client, **key).open_all().values()] for key in ({}, {"api_key": "k"})
    ]
    assert apis == [["kie"], ["kie"]]


async def test_adapter_is_bound_to_the_operators_key(client: ApiClient) -> None:
    registry = open_registry(client, api_key="k")
    assert registry.open("kie", DEFAULT_KEY_ID).key_id == DEFAULT_KEY_ID
    with pytest.raises(KeyError, match="no key another"):
        registry.open("kie", "another")
    with pytest.raises(KeyError):
        registry.open("legacy")


async def test_limits_come_from_the_catalog_unless_settings_override_them(client: ApiClient) -> None:
    documented = open_registry(client, api_key="k").open("kie")
    assert (documented.creates_per_10s, documented.concurrency) == (20, 100)
    chosen = open_registry(client, api_key="k", creates_per_10s=7, max_concurrent=3).open("kie")
    assert (chosen.creates_per_10s, chosen.concurrency) == (7, 3)


async def test_webhook_key_configures_the_signature(client: ApiClient) -> None:
    assert open_registry(client, api_key="k").signatures() == {"kie": Unsigned()}
    (signature,) = open_registry(client, api_key="k", webhook_key="w").signatures().values()
    assert isinstance(signature, JobIdHmac)
    assert signature.required
