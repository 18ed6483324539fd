"""The opened resources, and the parts that everything else is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.accounts.provider_keys import KeyVault
from broker.accounts.sealing import KeyRing
from broker.callbacks.public_url import PublicAddress
from broker.callbacks.tunnels import TunnelAgents
from broker.catalog import Catalog, Model
from broker.clock import Clock
from broker.i18n import Messages
from broker.metrics import Metrics
from broker.monitoring.process_sums import ReadSums
from broker.net.fetcher import Fetcher
from broker.ordering.offers import most_references
from broker.presenter import TaskPresenter
from broker.providers.base import Provider
from broker.providers.pool import ProviderPool
from broker.providers.registry import ProviderRegistry
from broker.settings import Settings
from broker.tasks.accounts.lanes import Lanes
from broker.tasks.accounts.pools import ProviderAccounts
from broker.tasks.policy import TaskPolicy
from broker.tasks.routing import Router
from broker.tasks.running import NextSteps, RunningSteps
from broker.tasks.submissions import SubmissionQueue
from storage.blobs.store import BlobStore
from storage.ids import provider_of
from storage.sql.database import Database
from storage.sql.row_changes import RowChanges
from storage.tables import Tables
from uploads.intake import Intake
from uploads.validation import ValidationLimits
from uploads.work import ImageWork, ThreadedWork
from webhooks.tokens import CallbackTokens


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The opened resources, and shared parts; each part is made when it is first used."""

    settings: Settings
    clock: Clock
    database: Database
    task_changes: RowChanges | None
    """Changes of task rows; None if they cannot be known, or this process does not work on tasks."""
    fetcher: Fetcher
    catalog: Catalog
    registry: ProviderRegistry
    blobs: BlobStore
    image_work: ImageWork | None = None
    """Validates images and stores small ones; None to do it in threads."""
    tokens: CallbackTokens
    address: PublicAddress
    agents: TunnelAgents
    extra_dialects: tuple[Callable[[Any], Any], ...] = ()
    """Factories of `broker.api.http.endpoint.Dialect`, mounted after the built-in one."""
    read_sums: ReadSums | None = None
    """Reads the metrics of all processes of a supervisor."""

    # -- shared parts

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.database)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics()

    @cached_property
    def policy(self) -> TaskPolicy:
        return TaskPolicy(
            check_after_seconds=self.settings.check_after,
            max_check_pause_seconds=max(60.0, self.settings.check_after),
            poll_seconds=self.settings.poll_every,
            deadline_seconds=self.settings.task_deadline,
            retry_seconds=self.settings.retry_after,
            resubmit_unknown=self.settings.resubmit_unknown,
            retention_seconds=self.settings.retention_hours * 3600.0,
            short_kept_seconds={
                name: seconds
                for name in self.registry.adapters
                if (seconds := self.catalog.terms(name).result_seconds) is not None
            },
        )

    @cached_property
    def presenter(self) -> TaskPresenter:
        return TaskPresenter(
            messages=Messages.load(),
            catalog=self.catalog,
            retention=self.policy.retention_seconds,
            unit_of=lambda provider: self.registry.terms(provider).unit,
        )

    @cached_property
    def intake(self) -> Intake:
        limits = ValidationLimits(max_pixels=self.settings.max_pixels, max_decode_bytes=self.settings.max_decode_bytes)
        return Intake(self.blobs, self.image_work or ThreadedWork(self.blobs, limits))

    @cached_property
    def pools(self) -> dict[str, ProviderPool]:
        return self.registry.open_all()

    @cached_property
    def providers(self) -> dict[str, Provider]:
        """The first account of each configured provider, for everything that needs no particular key."""
        return {name: pool.preferred for name, pool in self.pools.items()}

    @cached_property
    def router(self) -> Router:
        return Router(clock=self.clock, limits=self.tables.provider_limits, accounts=self.accounts)

    @cached_property
    def vault(self) -> KeyVault:
        return KeyVault(ring=KeyRing.from_secrets(self.tokens.secret, self.tokens.old_secrets))

    @cached_property
    def accounts(self) -> ProviderAccounts:
        return ProviderAccounts(
            clock=self.clock,
            keys=self.tables.provider_keys,
            vault=self.vault,
            registry=self.registry,
            house=self.pools,
        )

    @cached_property
    def submissions(self) -> SubmissionQueue:
        return SubmissionQueue(
            clock=self.clock,
            tables=self.tables,
            accounts=self.accounts,
            router=self.router,
            lanes=Lanes(clock=self.clock, queue=self.tables.task_queue),
        )

    @cached_property
    def running_steps(self) -> RunningSteps:
        return RunningSteps(tasks=self.tables.tasks, metrics=self.metrics)

    @cached_property
    def next_steps(self) -> NextSteps:
        return NextSteps(clock=self.clock, running=self.running_steps, lease_seconds=self.settings.lease)

    def supports(self, model: str) -> bool:
        """Return whether a provider in use serves a canonical model."""
        return any(provider.supports(model) for provider in self.providers.values())

    def most_references(self, model: Model) -> int:
        """Return how many reference images a provider in use takes for a model, at most."""
        return most_references(
            self.catalog, model, frozenset(provider.api_name for provider in self.providers.values())
        )

    @property
    def served_models(self) -> tuple[Model, ...]:
        """The models that a provider in use serves, in the order of the catalog."""
        return tuple(model for model in self.catalog.models if self.supports(model.name))

    @property
    def provider(self) -> Provider:
        """The preferred one of the configured providers."""
        return next(iter(self.providers.values()))

    def callback_url(self, provider: str, task: str, attempt: int) -> str | None:
        """Return the URL for callbacks about one attempt, token included; None without a public URL."""
        base = self.address.base
        if base is None:
            return None
        token = self.tokens.token(task, attempt)
        path = self.registry.adapters[provider_of(provider)].callback_path
        return f"{base}{path}?task={task}&attempt={attempt}&token={token}"
