"""The parts that many others share: rows, policy, providers, outbox."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from broker.callbacks.public_url import PublicAddress
from broker.callbacks.tunnels import TunnelAgents
from broker.catalog import Catalog
from broker.clock import Clock
from broker.i18n import Messages
from broker.metrics import Metrics
from broker.monitoring.balance import BalanceMonitor
from broker.net.fetcher import Fetcher
from broker.notifications.outbox import Outbox
from broker.presenter import TaskPresenter
from broker.providers.base import Provider
from broker.providers.registry import ProviderRegistry
from broker.settings import Settings
from broker.tasks.policy import TaskPolicy
from storage.attempts import Attempts
from storage.blobs.store import BlobStore
from storage.callbacks import Callbacks
from storage.cluster_state import ClusterState, PeriodicJobs
from storage.deliveries import Deliveries
from storage.idempotency import IdempotencyRecords
from storage.images import Images
from storage.provider_limits import ProviderLimits
from storage.sql.database import Database
from storage.tasks import Tasks
from uploads.intake import Intake
from webhooks.tokens import CallbackTokens


@dataclass(frozen=True, kw_only=True)
class SharedParts:
    """The opened resources, and the parts made of them alone."""

    settings: Settings
    clock: Clock
    database: Database
    fetcher: Fetcher
    catalog: Catalog
    registry: ProviderRegistry
    blobs: BlobStore
    tokens: CallbackTokens
    address: PublicAddress
    agents: TunnelAgents

    # -- rows

    @cached_property
    def tasks(self) -> Tasks:
        return Tasks(self.database)

    @cached_property
    def attempts(self) -> Attempts:
        return Attempts(self.database)

    @cached_property
    def images(self) -> Images:
        return Images(self.database)

    @cached_property
    def hooks(self) -> Callbacks:
        return Callbacks(self.database)

    @cached_property
    def idempotency_records(self) -> IdempotencyRecords:
        return IdempotencyRecords(self.database)

    @cached_property
    def lanes(self) -> ProviderLimits:
        return ProviderLimits(self.database)

    @cached_property
    def deliveries(self) -> Deliveries:
        return Deliveries(self.database)

    # -- values and helpers

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics()

    @cached_property
    def policy(self) -> TaskPolicy:
        return _policy(self.settings)

    @cached_property
    def presenter(self) -> TaskPresenter:
        return TaskPresenter(messages=Messages.load(), retention=self.policy.retention_seconds)

    @cached_property
    def intake(self) -> Intake:
        return Intake(self.blobs, max_pixels=self.settings.max_pixels)

    @cached_property
    def providers(self) -> dict[str, Provider]:
        return self.registry.open_all()

    @property
    def provider(self) -> Provider:
        """The preferred one of the configured providers."""
        return next(iter(self.providers.values()))

    @cached_property
    def outbox(self) -> Outbox:
        return Outbox(clock=self.clock, deliveries=self.deliveries, images=self.images, presenter=self.presenter)

    @cached_property
    def balances(self) -> BalanceMonitor:
        chores, facts = PeriodicJobs(self.database), ClusterState(self.database)
        return BalanceMonitor(clock=self.clock, chores=chores, facts=facts, providers=self.providers)

    def callback_url(self, provider: str, task: str, attempt: int) -> str | None:
        """Return the URL for callbacks about one attempt, token included; None without a public URL."""
        base = self.address.base
        if base is None:
            return None
        token = self.tokens.token(task, attempt)
        path = self.providers[provider].callback_path
        return f"{base}{path}?task={task}&attempt={attempt}&token={token}"


def _policy(settings: Settings) -> TaskPolicy:
    return TaskPolicy(
        check_after_seconds=settings.check_after,
        max_check_pause_seconds=max(60.0, settings.check_after),
        poll_seconds=settings.poll_every,
        deadline_seconds=settings.task_deadline,
        retry_seconds=settings.retry_after,
        resubmit_unknown=settings.resubmit_unknown,
        retention_seconds=settings.retention_hours * 3600.0,
    )
