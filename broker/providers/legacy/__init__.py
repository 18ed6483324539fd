"""Services of the older dialect, found at `…/nano-banana` addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources

from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext, ProviderPackage
from broker.providers.health import skipped
from broker.providers.legacy.adapter import Legacy

_NO_REQUEST = "this dialect has no free request for it: the first order shows it"


def legacy_package(owner: ProviderPackage) -> ProviderPackage:
    """Return the package. owner: that of the variables and the webhook key; one upstream, chosen by its URL."""
    checks = {check.name: check for check in owner.checks} | {
        "key": HealthCheck(name="key", run=check_account),
        "file upload": HealthCheck(name="file upload", run=check_upload),
    }
    return replace(
        owner,
        name="legacy",
        is_configured=lambda settings: settings.is_configured and settings.is_older_dialect,
        takes_own_keys=lambda settings: settings.is_older_dialect,
        factory=Legacy,
        checks=tuple(checks.values()),
        catalog=resources.files(__package__).joinpath("catalog.toml"),
    )


async def check_account(_: Provider, __: ProviderContext) -> Sequence[Finding]:
    return [skipped("key", _NO_REQUEST), skipped("credits", _NO_REQUEST)]


async def check_upload(_: Provider, __: ProviderContext) -> Sequence[Finding]:
    return [skipped("file upload", "this dialect has none: it fetches references from the public URL")]
