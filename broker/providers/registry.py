"""The registry of providers: one line per provider, and the adapters of those that are configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Final

from pydantic import SecretStr

from broker.catalog import Catalog, ProviderTerms
from broker.errors import SettingsError
from broker.net.api_client import ApiClient
from broker.net.fetcher import Fetcher
from broker.providers.base import NO_KEY_ID, Provider, ProviderContext, ProviderPackage, key_id_of
from broker.providers.fal import FAL
from broker.providers.gemini import GEMINI
from broker.providers.health import LOW_BALANCE_IMAGES
from broker.providers.kie import KIE
from broker.providers.kie.checks import SANDBOX_CHECKS
from broker.providers.kie.settings import KieSettings
from broker.providers.legacy import legacy_package
from broker.providers.nanobananaapi import NANOBANANAAPI
from broker.providers.openrouter import OPENROUTER
from broker.providers.pool import ProviderPool
from broker.providers.replicate import REPLICATE
from broker.providers.signing_keys import CallbackSignature
from broker.providers.wavespeed import WAVESPEED
from broker.settings import Settings
from broker.settings.types import PackageSettings

PROVIDERS: Final[tuple[ProviderPackage, ...]] = (
    KIE,
    legacy_package(owner=KIE),  # exclusive with the line above: one upstream, chosen by its URL
    REPLICATE,
    WAVESPEED,
    NANOBANANAAPI,
    GEMINI,
    OPENROUTER,
    FAL,
)

SANDBOX: Final = replace(KIE, name="sandbox", checks=SANDBOX_CHECKS)
"""Used where no provider is configured; the sandbox server speaks the same API."""


def sandbox_upstream(settings: Settings) -> KieSettings:
    """Return the settings of the upstream that the sandbox server stands in for."""
    return settings.package(KieSettings)


def point_to_sandbox(settings: Settings, url: str) -> Settings:
    """Return settings whose upstream is the sandbox server at `url`, without any key."""
    upstream = sandbox_upstream(settings)
    return settings.with_packages(upstream.model_copy(update={"kie_keys": (), "api_url": url, "upload_url": url}))


def settings_classes(extra: Sequence[ProviderPackage] = ()) -> tuple[type[PackageSettings], ...]:
    """Return the settings class of every package, each once."""
    return tuple(dict.fromkeys(package.settings for package in (*PROVIDERS, *extra)))


def load_catalog(extra: Sequence[ProviderPackage] = ()) -> Catalog:
    """Read the models and the catalog of every provider."""
    return _parse_catalog(tuple((package.name, package.catalog.read_text("utf-8")) for package in (*PROVIDERS, *extra)))


@cache
def _parse_catalog(providers: tuple[tuple[str, str], ...]) -> Catalog:
    """Parse the catalogs of providers once per process: it takes 10 ms."""
    return Catalog.load(providers=dict(providers))


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
        """Return the packages in use by name, in the order of preference; the sandbox if none is configured.

        Those of BROKER_PROVIDERS in its order, or all configured ones. Raises `SettingsError` for a name there that
        is not known or not configured.
        """
        found = {
            package.name: package
            for package in (*PROVIDERS, *self.extra)
            if package.is_configured(self._settings_of(package))
        } or {SANDBOX.name: SANDBOX}
        for name in self.settings.providers:
            if name not in found:
                raise SettingsError(
                    f"BROKER_PROVIDERS names {name}, which has no key: set its key, or use some of {', '.join(found)}"
                )
        return {name: found[name] for name in self.settings.providers or found}

    @cached_property
    def known(self) -> Mapping[str, ProviderPackage]:
        """Return the packages at which users can have keys of their own: those in use first, then all others.

        Not the sandbox: in its place it is the provider that it stands in for, at the sandbox's address.
        """
        others = {package.name: package for package in (*PROVIDERS, *self.extra)}
        packages = {**{name: self.packages[name] for name in self.packages if name in others}, **others}
        return {
            name: package for name, package in packages.items() if package.takes_own_keys(self._settings_of(package))
        }

    def open(self, name: str) -> ProviderPool:
        """Return the adapters of a configured provider, one per key. Raises KeyError for an unknown one."""
        factory = self.packages[name].factory
        return ProviderPool(name=name, accounts={one.key_id: factory(one) for one in self.contexts(name)})

    def open_own(self, name: str, key_id: str, key: SecretStr) -> Provider:
        """Return the adapter of a user's key at a known provider. Raises KeyError for an unknown one."""
        return self.known[name].factory(self.own_context(name, key_id, key))

    def own_context(self, name: str, key_id: str, key: SecretStr) -> ProviderContext:
        """Return a user's key at a known provider, with its limits. Raises KeyError for an unknown one."""
        return self._make_context(name, self.known[name], key_id, key)

    @cached_property
    def adapters(self) -> Mapping[str, Provider]:
        """Return an adapter of each provider in use and of each other known one, for what needs no key."""
        others = {
            name: package.factory(self._make_context(name, package, NO_KEY_ID, None))
            for name, package in self.known.items()
            if name not in self.packages
        }
        return {**{name: self.open(name).preferred for name in self.packages}, **others}

    def contexts(self, name: str) -> tuple[ProviderContext, ...]:
        """Return every key of a provider, with its limits. Raises KeyError for an unknown one."""
        package = self.packages[name]
        keys: dict[str, SecretStr | None] = {key_id_of(key): key for key in self._settings_of(package).keys}
        return tuple(
            self._make_context(name, package, key_id, key) for key_id, key in (keys or {NO_KEY_ID: None}).items()
        )

    def _make_context(self, name: str, package: ProviderPackage, key_id: str, key: SecretStr | None) -> ProviderContext:
        terms = self.terms(name)
        return ProviderContext(
            name=name,
            key_id=key_id,
            api_key=key,
            settings=self._settings_of(package),
            client=self.client,
            fetcher=self._fetcher,
            catalog=self.catalog,
            now=self.now,
            creates_per_10s=terms.creates_per_10s,
            concurrency=self.settings.max_concurrent or terms.concurrency,
        )

    def terms(self, name: str) -> ProviderTerms:
        """Return limits and unit of a provider, configured or not."""
        return self.catalog.terms(_catalog_name(name))

    def low_balance(self, name: str) -> float | None:
        """Return the balance, in the provider's unit, below which an account should be topped up; None if unknown."""
        price = self.catalog.lowest_price(_catalog_name(name))
        return None if price is None else LOW_BALANCE_IMAGES * price

    def open_all(self) -> dict[str, ProviderPool]:
        """Return every configured provider, the preferred one first."""
        return {name: self.open(name) for name in self.packages}

    @cached_property
    def _fetcher(self) -> Fetcher:
        """Return the client for addresses that a provider names; the rules are those of results."""
        return Fetcher(allow=self.settings.download_allow)

    @cached_property
    def signatures(self) -> Mapping[str, CallbackSignature]:
        """Return the verifier of each provider's callbacks."""
        return {name: package.signature(self.contexts(name)) for name, package in self.packages.items()}

    def _settings_of(self, package: ProviderPackage) -> PackageSettings:
        return self.settings.package(package.settings)


def _catalog_name(name: str) -> str:
    """Return the name of a provider's catalog: the sandbox has that of the provider that it stands in for."""
    return KIE.name if name == SANDBOX.name else name
