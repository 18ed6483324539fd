"""The composition of the system: the list of its parts, and how each one is made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.callbacks.inbox import CallbackInbox
from broker.callbacks.probe import ReachabilityProbe
from broker.callbacks.public_url import PublicAddress
from broker.callbacks.receive import CallbackReceiver, FloodGuard
from broker.callbacks.url_monitor import UrlMonitor
from broker.callbacks.verification import CallbackVerifier
from broker.catalog import Catalog
from broker.clock import Clock
from broker.metrics import Metrics
from broker.monitoring.collectors import DatabaseCollector
from broker.net.fetcher import Fetcher
from broker.notifications.deliverer import Deliverer
from broker.notifications.delivery_log import DeliveryLog
from broker.ordering.idempotency import Idempotency
from broker.ordering.plan import Planner
from broker.ordering.rate_limit import RateLimiter
from broker.ordering.references import ReferenceIntake
from broker.ordering.service import OrderService
from broker.presenter import TaskPresenter
from broker.providers.base import Provider
from broker.services.parts import SharedParts
from broker.settings import Settings
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.eta import EtaEstimator
from broker.tasks.leases import ClockGuard, LeaseKeeper
from broker.tasks.orders import OrderBuilder
from broker.tasks.queries import TaskQueries
from broker.tasks.retention import Retention
from broker.tasks.running import RunningSteps
from broker.tasks.sources import CallbackQueue, SubmissionQueue
from broker.tasks.steps.callbacks import CallbackStep
from broker.tasks.steps.check import CheckStep, PollingSwitch
from broker.tasks.steps.download import DownloadStep
from broker.tasks.steps.recover import RecoverStep
from broker.tasks.steps.submit import MAX_RESERVATIONS, SubmitStep
from broker.tasks.steps.table import StepTable
from broker.tasks.transitions import Transitions
from broker.tasks.worker import Worker
from broker.thumbnails import Thumbnails
from storage.blobs.store import BlobStore
from storage.callbacks import Callbacks
from storage.cluster_state import ClusterState, PeriodicJobs
from storage.deliveries import Deliveries
from storage.images import Images
from storage.provider_limits import AccountLimits
from storage.rate_limits import RateLimits
from storage.sql.database import Database
from storage.task_retention import TaskRetention
from storage.tasks import Tasks
from webhooks.signatures.standard import StandardSignature, derived_key, read_secret
from webhooks.tokens import CallbackTokens, ChallengeResponse

DOWNLOAD_CONCURRENCY = 20


@dataclass(frozen=True, kw_only=True)
class Services:
    """The opened system. url_monitor: keeps `address` up to date while it runs."""

    settings: Settings
    clock: Clock
    database: Database
    blobs: BlobStore
    tokens: CallbackTokens
    catalog: Catalog
    provider: Provider
    """The preferred one of `providers`."""
    providers: Mapping[str, Provider]
    metrics: Metrics
    presenter: TaskPresenter
    tasks: Tasks
    images: Images
    hooks: Callbacks
    deliveries: Deliveries
    orders: OrderService
    queries: TaskQueries
    canceler: TaskCanceler
    callbacks: CallbackReceiver
    inbox: CallbackInbox
    delivery_log: DeliveryLog
    thumbnails: Thumbnails
    eta: EtaEstimator
    worker: Worker
    collector: DatabaseCollector
    address: PublicAddress
    url_monitor: UrlMonitor
    extra_dialects: tuple[Callable[[Services], Any], ...] = ()
    """Factories of `broker.api.http.endpoint.Dialect`, mounted after the built-in one."""


@dataclass(frozen=True, kw_only=True)
class Composition(SharedParts):
    """The parts made of the shared ones."""

    def services(self) -> Services:
        return Services(
            settings=self.settings,
            clock=self.clock,
            database=self.database,
            blobs=self.blobs,
            tokens=self.tokens,
            catalog=self.catalog,
            provider=self.provider,
            providers=self.providers,
            metrics=self.metrics,
            presenter=self.presenter,
            tasks=self.tasks,
            images=self.images,
            hooks=self.hooks,
            deliveries=self.deliveries,
            orders=self._orders(),
            queries=self.queries,
            canceler=self._canceler(),
            callbacks=self._callbacks(),
            inbox=self._inbox(),
            delivery_log=DeliveryLog(clock=self.clock, deliveries=self.deliveries),
            thumbnails=self._thumbnails(),
            eta=self._eta(),
            worker=self.worker,
            collector=self._collector(),
            address=self.address,
            url_monitor=self._url_monitor(),
        )

    @cached_property
    def order_builder(self) -> OrderBuilder:
        return OrderBuilder(blobs=self.blobs, image_base=lambda: self.address.base)

    @cached_property
    def transitions(self) -> Transitions:
        return Transitions(
            clock=self.clock,
            policy=self.policy,
            tasks=self.tasks,
            attempts=self.attempts,
            outbox=self.outbox,
            metrics=self.metrics,
        )

    @cached_property
    def steps(self) -> StepTable:
        return StepTable(
            submit=SubmitStep(
                tasks=self.tasks,
                lanes=self.lanes,
                providers=self.providers,
                metrics=self.metrics,
                orders=self.order_builder,
                transitions=self.transitions,
                callback_url=self.callback_url,
                reservations=asyncio.Semaphore(MAX_RESERVATIONS),
            ),
            recover=RecoverStep(transitions=self.transitions),
            check=CheckStep(
                hooks=self.hooks, providers=self.providers, metrics=self.metrics, transitions=self.transitions
            ),
            download=DownloadStep(
                tasks=self.tasks,
                images=self.images,
                intake=self.intake,
                fetcher=self.fetcher,
                providers=self.providers,
                metrics=self.metrics,
                transitions=self.transitions,
                max_download_bytes=self.settings.max_download_bytes,
                downloads=asyncio.Semaphore(DOWNLOAD_CONCURRENCY),
            ),
            transitions=self.transitions,
        )

    @cached_property
    def callback_step(self) -> CallbackStep:
        return CallbackStep(
            clock=self.clock,
            tasks=self.tasks,
            attempts=self.attempts,
            hooks=self.hooks,
            providers=self.providers,
            transitions=self.transitions,
        )

    @cached_property
    def running_steps(self) -> RunningSteps:
        return RunningSteps(tasks=self.tasks, metrics=self.metrics)

    @cached_property
    def queries(self) -> TaskQueries:
        return TaskQueries(clock=self.clock, database=self.database, tasks=self.tasks, images=self.images)

    @cached_property
    def verifier(self) -> CallbackVerifier:
        return CallbackVerifier(
            clock=self.clock,
            tasks=self.tasks,
            tokens=self.tokens,
            provider=self.provider,
            providers=self.providers,
            signatures=self.registry.signatures(),
        )

    def _orders(self) -> OrderService:
        return OrderService(
            clock=self.clock,
            policy=self.policy,
            database=self.database,
            tasks=self.tasks,
            images=self.images,
            queries=self.queries,
            planner=Planner(
                clock=self.clock,
                catalog=self.catalog,
                providers=self.providers,
                caller_fetcher=_caller_fetcher(self.settings),
            ),
            references=ReferenceIntake(
                clock=self.clock,
                catalog=self.catalog,
                blobs=self.blobs,
                intake=self.intake,
                fetcher=self.fetcher,
                max_file_size_bytes=self.settings.max_file_size,
            ),
            idempotency=Idempotency(clock=self.clock, records=self.idempotency_records),
            limiter=RateLimiter(
                clock=self.clock, usage=RateLimits(self.database), per_minute=self.settings.rate_per_minute
            ),
            providers=self.providers,
            callback_url=self.callback_url,
            image_base=lambda: self.address.base,
        )

    def _canceler(self) -> TaskCanceler:
        return TaskCanceler(
            clock=self.clock,
            policy=self.policy,
            queries=self.queries,
            transitions=self.transitions,
            providers=self.providers,
        )

    def _callbacks(self) -> CallbackReceiver:
        return CallbackReceiver(
            clock=self.clock,
            verifier=self.verifier,
            hooks=self.hooks,
            metrics=self.metrics,
            flood_guard=FloodGuard(clock=self.clock),
        )

    def _inbox(self) -> CallbackInbox:
        return CallbackInbox(
            clock=self.clock,
            policy=self.policy,
            attempts=self.attempts,
            hooks=self.hooks,
            callback_step=self.callback_step,
            verifier=self.verifier,
        )

    @cached_property
    def worker(self) -> Worker:
        running = self.running_steps
        return Worker(
            clock=self.clock,
            tasks=self.tasks,
            steps=self.steps,
            submissions=SubmissionQueue(clock=self.clock, tasks=self.tasks, lanes=self.lanes, providers=self.providers),
            callbacks=CallbackQueue(hooks=self.hooks, step=self.callback_step, running=running),
            deliverer=self._deliverer(),
            retention=self._retention(),
            balances=self.balances,
            running=running,
            leases=LeaseKeeper(clock=self.clock, tasks=self.tasks, running=running, lease_seconds=self.settings.lease),
            clock_guard=ClockGuard(clock=self.clock),
        )

    def _thumbnails(self) -> Thumbnails:
        return Thumbnails(
            clock=self.clock, tasks=self.tasks, images=self.images, blobs=self.blobs, metrics=self.metrics
        )

    def _eta(self) -> EtaEstimator:
        return EtaEstimator(
            clock=self.clock,
            tasks=self.tasks,
            lanes=self.lanes,
            limits=lambda name: _limits(self.providers.get(name)),
            models=[model.name for model in self.catalog.models],
        )

    def _deliverer(self) -> Deliverer:
        return Deliverer(
            clock=self.clock,
            deliveries=self.deliveries,
            fetcher=_caller_fetcher(self.settings),  # its own, so that name lookups of requests do not delay deliveries
            signature=StandardSignature(signing_keys(self.settings, self.tokens.secret)),
            metrics=self.metrics,
            retention_seconds=self.policy.retention_seconds,
        )

    def _retention(self) -> Retention:
        return Retention(
            clock=self.clock,
            policy=self.policy,
            database=self.database,
            tasks=TaskRetention(self.database),
            images=self.images,
            hooks=self.hooks,
            idempotency=self.idempotency_records,
            deliveries=self.deliveries,
            chores=PeriodicJobs(self.database),
            facts=ClusterState(self.database),
            blobs=self.blobs,
            metrics=self.metrics,
        )

    def _collector(self) -> DatabaseCollector:
        return DatabaseCollector(
            clock=self.clock,
            metrics=self.metrics,
            tasks=self.tasks,
            lanes=self.lanes,
            deliveries=self.deliveries,
            balances=self.balances,
            steps_running=lambda: self.running_steps.count,
        )

    def _url_monitor(self) -> UrlMonitor:
        return UrlMonitor(
            address=self.address,
            agents=self.agents,
            probe=ReachabilityProbe(client=self.agents.client, challenge=ChallengeResponse(self.tokens.secret)),
            switch_to_polling=PollingSwitch(tasks=self.tasks, transitions=self.transitions).switch_to_polling,
            clock=self.clock,
            metrics=self.metrics,
            is_only_machine=not self.settings.shared,
        )


def _limits(provider: Provider | None) -> AccountLimits | None:
    return (
        AccountLimits(creates_per_window=provider.creates_per_10s, concurrency=provider.concurrency)
        if provider
        else None
    )


def signing_keys(settings: Settings, secret: bytes) -> list[bytes]:
    """Return the keys that sign webhooks: the configured ones, or one derived from our secret."""
    chosen = [read_secret(key.get_secret_value()) for key in settings.webhook_secrets]
    return chosen or [derived_key(secret)]


def _caller_fetcher(settings: Settings) -> Fetcher:
    """Return a fetcher for callers' addresses."""
    return Fetcher(allow=settings.callback_allow, exemption="BROKER_CALLBACK_ALLOW")
