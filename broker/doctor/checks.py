"""All checks, in the order of the report, and running them concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.doctor import accounts, file_modes, machine, providers, python_version, reachability, sealed_keys
from broker.doctor.context import DoctorContext
from broker.providers.base import Finding, HealthCheck, Provider, ProviderContext
from broker.providers.health import failed, skipped
from storage.errors import StorageError

CHECK_SECONDS: Final = 20.0
"""Time-out of one check; they run concurrently."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of the configuration."""

    name: str
    run: Callable[[DoctorContext], Awaitable[Sequence[Finding]]]
    """Returns one or more findings, whose names may differ from the check's."""
    needs: frozenset[str] = frozenset()
    """Settings without which the check makes no sense."""


_DATA: Final = frozenset({"data_dir"})
_DATABASE: Final = _DATA | {"database_url", "database_listen_url", "postgres_host", "postgres_port"}

_CHECKS: Final = (
    Check(name="Python", run=python_version.check_python),
    Check(
        name="public address",
        run=reachability.check_inbound,
        needs=frozenset({"host", "port", "secret_key", "webhook_base_url", "tunnel_api"}),
    ),
    Check(
        name="access",
        run=reachability.check_access,
        needs=frozenset({"host", "api_keys", "allow_anonymous", "cors_origins"}),
    ),
    Check(name="secret", run=machine.check_secret, needs=_DATA | {"secret_key"}),
    Check(name="database", run=machine.check_database, needs=_DATABASE | {"lease"}),
    Check(
        name=providers.NAME,
        run=providers.check_provider_state,
        needs=_DATABASE | {"providers"},
    ),
    Check(name=accounts.NAME, run=accounts.check_users, needs=_DATABASE | {"allow_anonymous"}),
    Check(
        name=sealed_keys.NAME,
        run=sealed_keys.check_sealed_keys,
        needs=_DATA | {"database_url", "database_listen_url", "secret_key", "old_secret_keys"},
    ),
    Check(name="images", run=machine.check_images, needs=_DATA | {"blob_url"}),
    Check(name="disk", run=machine.check_disks, needs=_DATABASE | {"blob_url"}),
    Check(name="file permissions", run=file_modes.check_file_modes, needs=_DATABASE | {"blob_url"}),
)


def checks_for(context: DoctorContext) -> tuple[Check, ...]:
    """Return every check that applies to the settings, those of the configured providers first."""
    return (*_provider_checks(context), *_CHECKS)


def _provider_checks(doctor: DoctorContext) -> Iterator[Check]:
    """Yield the checks of each key of each provider; with several, findings begin with their names."""
    registry = doctor.registry
    for name, package in registry.packages.items():
        prefix = f"{name}: " if len(registry.packages) > 1 else ""
        accounts = registry.open(name).accounts
        for context in registry.contexts(name):
            which = f"key {context.key_id}: " if len(accounts) > 1 else ""
            for check in package.checks:
                yield _adapt_check(check, accounts[context.key_id], context, prefix + which)


def _adapt_check(check: HealthCheck, provider: Provider, account: ProviderContext, prefix: str) -> Check:
    async def run(_: DoctorContext) -> Sequence[Finding]:
        return [replace(finding, name=prefix + finding.name) for finding in await check.run(provider, account)]

    return Check(name=prefix + check.name, run=run, needs=check.needs)


async def run_checks(
    context: DoctorContext, checks: Sequence[Check], seconds: float = CHECK_SECONDS
) -> AsyncIterator[Finding]:
    """Yield all findings in the order of the checks; a check that fails does not affect the others."""
    running = [asyncio.create_task(_run_check(context, check, seconds)) for check in checks]
    try:
        for findings in running:
            for finding in await findings:
                yield finding
    finally:
        for findings in running:
            findings.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _run_check(context: DoctorContext, check: Check, seconds: float) -> Sequence[Finding]:
    if check.needs & context.wrong:
        return [skipped(check.name, "cannot be checked before the settings above are right")]
    try:
        async with asyncio.timeout(seconds):
            return await check.run(context)
    except StorageError as error:
        return [storage_failure(check.name, error)]
    except TimeoutError:
        return [failed(check.name, f"no answer within {seconds:g} seconds", "see why it hangs, then run this again")]
    except Exception as error:  # the text of an unexpected error may hold secrets
        found = f"the check itself failed ({type(error).__name__})"
        return [failed(check.name, found, "please report it, with the versions and the type of this error")]


def storage_failure(name: str, error: StorageError) -> Finding:
    """Split a storage error, whose message ends with the cure."""
    found, sign, cure = str(error).rpartition(": ")
    return failed(name, found if sign else cure, cure if sign else "look at the log of the store, and at its disk")
