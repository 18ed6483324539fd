"""Services of the older dialect, found at `…/nano-banana` addresses."""

from __future__ import annotations

from importlib import resources

from broker.providers.base import ProviderPackage
from broker.providers.legacy.adapter import open_legacy
from broker.providers.legacy.checks import CHECKS
from broker.providers.legacy.settings import is_configured
from broker.providers.legacy.signature import configure_signature
from broker.settings.types import PackageSettings


def legacy_package(settings: type[PackageSettings]) -> ProviderPackage:
    """Return the package. settings: the class that owns the variables of the upstream API, see `settings`."""
    return ProviderPackage(
        name="legacy",
        settings=settings,
        is_configured=is_configured,
        factory=open_legacy,
        signature=configure_signature,
        checks=CHECKS,
        catalog=resources.files(__package__).joinpath("catalog.toml"),
    )
