"""All checks, in the order of the report: those of the configured providers first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from broker.doctor import access, reachability, storage
from broker.doctor.context import DoctorContext
from broker.doctor.findings import Check, Finding
from broker.providers.base import HealthCheck, Provider, ProviderContext

_DATA: Final = frozenset({"data_dir"})

_CHECKS: Final = (
    Check(name="Python", run=access.check_python),
    Check(
        name="public address",
        run=reachability.check_inbound,
        needs=frozenset({"host", "port", "secret_key", "webhook_base_url", "tunnel_api"}),
    ),
    Check(
        name="access", run=access.check_access, needs=frozenset({"host", "api_keys", "allow_anonymous", "cors_origins"})
    ),
    Check(name="secret", run=storage.check_secret, needs=_DATA | {"secret_key"}),
    Check(name="database", run=storage.check_database, needs=_DATA | {"database_url", "database_listen_url", "lease"}),
    Check(name="images", run=storage.check_images, needs=_DATA | {"blob_url"}),
    Check(name="disk", run=storage.check_disks, needs=_DATA | {"database_url", "blob_url"}),
)


def checks_for(context: DoctorContext) -> tuple[Check, ...]:
    """Return every check that applies to the settings."""
    return (*_provider_checks(context), *_CHECKS)


def _provider_checks(context: DoctorContext) -> Iterator[Check]:
    """Yield the checks of each configured provider; with several, findings begin with the provider's name."""
    registry = context.registry
    for name, package in registry.packages.items():
        prefix = f"{name}: " if len(registry.packages) > 1 else ""
        provider = registry.open(name)
        for check in package.checks:
            yield _adapt_check(check, provider, registry.context(name), prefix)


def _adapt_check(check: HealthCheck, provider: Provider, account: ProviderContext, prefix: str) -> Check:
    async def run(_: DoctorContext) -> Sequence[Finding]:
        return [replace(finding, name=prefix + finding.name) for finding in await check.run(provider, account)]

    return Check(name=prefix + check.name, run=run, needs=check.needs)
