"""All checks, in the order of the report: those of the configured providers first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from broker.doctor import doors, keeping, reach
from broker.doctor.findings import Check, Finding
from broker.doctor.patient import Patient
from broker.providers.base import HealthCheck, HealthContext

_DATA: Final = frozenset({"data_dir"})

_CHECKS: Final = (
    Check(name="Python", look=doors.python),
    Check(
        name="public address",
        look=reach.way_in,
        needs=frozenset({"host", "port", "secret_key", "webhook_base_url", "tunnel_api"}),
    ),
    Check(name="access", look=doors.access, needs=frozenset({"host", "api_keys", "allow_anonymous", "cors_origins"})),
    Check(name="secret", look=keeping.secret, needs=_DATA | {"secret_key"}),
    Check(name="database", look=keeping.database, needs=_DATA | {"database_url", "database_listen_url", "lease"}),
    Check(name="images", look=keeping.images, needs=_DATA | {"blob_url"}),
    Check(name="disk", look=keeping.disks, needs=_DATA | {"database_url", "blob_url"}),
)


def checks_for(patient: Patient) -> tuple[Check, ...]:
    """Return every check that applies to the settings."""
    return (*_provider_checks(patient), *_CHECKS)


def _provider_checks(patient: Patient) -> Iterator[Check]:
    """Yield the checks of each configured provider; with several, findings begin with the provider's name."""
    contexts = patient.registry.health_contexts()
    for name, package in patient.registry.packages.items():
        prefix = f"{name}: " if len(contexts) > 1 else ""
        for check in package.checks:
            yield _adapt_check(check, contexts[name], prefix)


def _adapt_check(check: HealthCheck, context: HealthContext, prefix: str) -> Check:
    async def look(_: Patient) -> Sequence[Finding]:
        return [replace(finding, name=prefix + finding.name) for finding in await check.run(context)]

    return Check(name=prefix + check.name, look=look, needs=check.needs)
