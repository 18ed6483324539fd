"""The registry of providers: one line per provider, and the adapters of those that are configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from broker.catalog import Catalog
from broker.net.api_client import ApiClient
from broker.providers.base import DEFAULT_KEY_ID, Provider, ProviderContext, ProviderPackage
from broker.providers.kie import KIE
from broker.providers.kie.checks import SANDBOX_CHECKS
from broker.providers.kie.settings import KieSettings
from broker.providers.legacy import legacy_package
from broker.settings import Settings
from broker.settings.types import PackageSettings
from webhooks.signatures.base import Signature

PROVIDERS: Final[tuple[ProviderPackage, ...]] = (
    KIE,
    legacy_package(owner=KIE),  # exclusive with the line above: one upstream, chosen by its URL
)

SANDBOX: Final = replace(KIE, name="sandbox", checks=SANDBOX_CHECKS)
"""Used where no provider is configured; the sandbox server speaks the same API."""


def sandbox_upstream(settings: Settings) -> KieSettings:
    """Return the settings of the upstream that the sandbox server stands in for."""
    return settings.package(KieSettings)


def point_to_sandbox(settings: Settings, url: str) -> Settings:
    """Return settings whose upstream is the sandbox server at `url`, without any key."""
    upstream = sandbox_upstream(settings)
    return settings.with_packages(upstream.model_copy(update={"api_key": None, "api_url": url, "upload_url": url}))


def settings_classes(extra: Sequence[ProviderPackage] = ()) -> tuple[type[PackageSettings], ...]:
    """Return the settings class of every package, each once."""
    return tuple(dict.fromkeys(package.settings for package in (*PROVIDERS, *extra)))


def load_catalog(extra: Sequence[ProviderPackage] = ()) -> Catalog:
    """Read the models and the catalog of every provider."""
    return Catalog.load(
        providers={package.name: package.catalog.read_text("utf-8") for package in (*PROVIDERS, *extra)}
    )


@dataclass(frozen=True, kw_only=True)
class ProviderRegistry:
    """The providers that are configured in this process."""

    settings: Settings
    client: ApiClient
    catalog: Catalog
    now: Callable[[], float]
    """Seconds since the epoch."""
    extra: Sequence[ProviderPackage] = ()
    """Packages beside those of this module."""

    @cached_property
    def packages(self) -> Mapping[str, ProviderPackage]:
        """Return the configured packages by name, in the order of preference; the sandbox if none is configured."""
        found = [package for package in (*PROVIDERS, *self.extra) if package.is_configured(self._settings_of(package))]
        return {package.name: package for package in found or [SANDBOX]}

    def open(self, name: str, key_id: str = DEFAULT_KEY_ID) -> Provider:
        """Return an adapter of a configured provider, bound to one key. Raises KeyError for an unknown one."""
        return self.packages[name].factory(self.context(name, key_id))

    def context(self, name: str, key_id: str = DEFAULT_KEY_ID) -> ProviderContext:
        """Return one key of a provider, with its limits. Raises KeyError for an unknown one."""
        if key_id != DEFAULT_KEY_ID:
            raise KeyError(f"{name} has no key {key_id}")
        terms = self.catalog.terms(name if name != SANDBOX.name else KIE.name)
        return ProviderContext(
            name=name,
            key_id=key_id,
            settings=self._settings_of(self.packages[name]),
            client=self.client,
            catalog=self.catalog,
            now=self.now,
            creates_per_10s=terms.creates_per_10s,
            concurrency=self.settings.max_concurrent or terms.concurrency,
        )

    def open_all(self) -> dict[str, Provider]:
        """Return an adapter of every configured provider, bound to the operator's key; the preferred one first."""
        return {name: self.open(name) for name in self.packages}

    def signatures(self) -> dict[str, Signature]:
        """Return the verifier of each provider's callbacks."""
        return {name: package.signature(self._settings_of(package)) for name, package in self.packages.items()}

    def _settings_of(self, package: ProviderPackage) -> PackageSettings:
        return self.settings.package(package.settings)
