"""`broker providers`: load, limits and circuit of every key; pause and resume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from broker.cli.connection import Document, connect_broker, record_path, show_document
from broker.cli.console import print_json, print_line

_CIRCUITS: Final = {"closed": "takes orders", "half_open": "is probed", "open": "cools down", "set_aside": "SET ASIDE"}


async def list_providers(*, as_json: bool, watch: bool) -> None:
    """Print every provider in use; with `watch` again after each change."""
    await show_document("/api/providers", _print_providers, as_json=as_json, watch=watch)


async def change_provider(name: str, change: Literal["pause", "resume"], *, as_json: bool) -> None:
    """Pause or resume a provider, for all processes."""
    async with connect_broker() as broker:
        document = await broker.client.ask("POST", f"{record_path('providers', name)}/{change}")
    if as_json:
        print_json(document)
        return
    _print_provider(document["data"])


def _print_providers(document: Document) -> None:
    for provider in document["data"]:
        _print_provider(provider)


def _print_provider(provider: Mapping[str, Any]) -> None:
    state = "takes orders" if provider["available"] else f"takes no orders: {provider['reason']}"
    print_line(f"{provider['name']} at {provider['baseUrl']} {state}")
    print_line(f"  models     {', '.join(provider['models'])}")
    print_line(f"  callbacks  {'signed' if provider['callbacksSigned'] else 'not signed'}")
    for key in provider["keys"]:
        print_line(f"  key        {key['keyId']}  {'  '.join(_describe_key(key, provider['unit']))}")


def _describe_key(key: Mapping[str, Any], unit: str | None) -> Iterator[str]:
    yield _CIRCUITS[key["circuit"]]
    if key["cooldownReason"]:
        yield key["cooldownReason"]
    if key["cooldownUntil"]:
        yield f"until {key['cooldownUntil']}"
    yield f"in flight {key['inFlight']}/{key['concurrency']}"
    yield f"submitted {key['submitted']}/{key['createsPer10s']} in 10 s"
    if key["balance"] is not None:
        yield " ".join(filter(None, (f"balance {key['balance']:g}", unit)))
    if key["errorRate"] is not None:
        yield f"errors {key['errorRate']:.0%} of {key['attempts']} in an hour"
