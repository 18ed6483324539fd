"""The parts of the system, and how each is made of others. `bootstrap` opens and closes the resources below them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

from broker.accounts.quotas import make_limits
from broker.callbacks.inbox import CallbackInbox
from broker.callbacks.probe import ReachabilityProbe
from broker.callbacks.receive import CallbackReceiver
from broker.callbacks.url_monitor import UrlMonitor
from broker.callbacks.verification import CallbackVerifier
from broker.monitoring.balance import BalanceMonitor
from broker.monitoring.collectors import DatabaseCollector
from broker.net.fetcher import Fetcher
from broker.notifications.deliverer import Deliverer
from broker.notifications.formats import make_formats
from broker.notifications.formats.base import FormatContext, WebhookFormat
from broker.notifications.outbox import Outbox
from broker.notifications.signing import WebhookKeys, known_secrets
from broker.ordering.answers import OpenAnswers
from broker.ordering.appraisals import Appraiser, PriceTable
from broker.ordering.budgets import DailyBudget
from broker.ordering.files import FileService
from broker.ordering.idempotency import Idempotency
from broker.ordering.limits import OrderLimits
from broker.ordering.own_images import OwnImages
from broker.ordering.plan import Planner
from broker.ordering.quotas import OwnerQuotas
from broker.ordering.rate_limit import RateLimiter
from broker.ordering.references import ReferenceIntake
from broker.ordering.routing import OrderRouter
from broker.ordering.service import OrderService
from broker.privacy.deletion import AccountDeleter
from broker.privacy.erasure import TaskEraser
from broker.privacy.export import AccountExporter
from broker.privacy.records import OwnerRecords
from broker.services.accounts import AccountServices
from broker.services.conversations import ConversationParts, make_conversations
from broker.services.steps import make_steps
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.deletion import TaskDeleter
from broker.tasks.eta import EtaEstimator
from broker.tasks.pins import TaskPins
from broker.tasks.queries import TaskQueries
from broker.tasks.retention import ClockGuard, Retention
from broker.tasks.running import LeaseKeeper
from broker.tasks.steps.arrivals import Arrivals
from broker.tasks.steps.callbacks import CallbackQueue, CallbackStep
from broker.tasks.steps.check import switch_to_polling
from broker.tasks.steps.table import StepTable
from broker.tasks.transitions import Transitions
from broker.tasks.waiting.watcher import TaskWatcher
from broker.tasks.worker import Worker
from broker.thumbnails import Thumbnails
from webhooks.redaction import Redactor
from webhooks.tokens import ChallengeResponse


@dataclass(frozen=True, kw_only=True)
class Services(AccountServices):
    """The parts of the system; each part is made when it is first used."""

    # -- tasks

    @cached_property
    def queries(self) -> TaskQueries:
        watcher = TaskWatcher(database=self.database, changes=self.task_changes)
        tables = self.tables
        return TaskQueries(tasks=tables.tasks, newest=tables.newest_tasks, images=tables.images, watcher=watcher)

    @cached_property
    def canceler(self) -> TaskCanceler:
        return TaskCanceler(queries=self.queries, transitions=self.transitions, accounts=self.accounts)

    @cached_property
    def deleter(self) -> TaskDeleter:
        return TaskDeleter(queries=self.queries, transitions=self.transitions, tables=self.tables)

    @cached_property
    def pins(self) -> TaskPins:
        return TaskPins(queries=self.queries, transitions=self.transitions, read_limit=self.quotas.read_pin_limit)

    @cached_property
    def eta(self) -> EtaEstimator:
        return EtaEstimator(clock=self.clock, tables=self.tables, accounts=self.accounts, catalog=self.catalog)

    @cached_property
    def thumbnails(self) -> Thumbnails:
        return Thumbnails(
            clock=self.clock,
            tasks=self.tables.tasks,
            images=self.tables.images,
            blobs=self.blobs,
            metrics=self.metrics,
        )

    @cached_property
    def transitions(self) -> Transitions:
        return Transitions(
            clock=self.clock,
            policy=self.policy,
            tasks=self.tables.tasks,
            attempts=self.tables.attempts,
            images=self.tables.images,
            outbox=Outbox(clock=self.clock, tables=self.tables, formats=self.webhook_formats),
            metrics=self.metrics,
            router=self.router,
            next_steps=self.next_steps,
        )

    @cached_property
    def callback_step(self) -> CallbackStep:
        return CallbackStep(tables=self.tables, providers=self.registry.adapters, transitions=self.transitions)

    @cached_property
    def callback_queue(self) -> CallbackQueue:
        return CallbackQueue(step=self.callback_step, running=self.running_steps, next_steps=self.next_steps)

    @cached_property
    def balances(self) -> BalanceMonitor:
        return BalanceMonitor(
            clock=self.clock,
            tables=self.tables,
            pools=self.pools,
            metrics=self.metrics,
            low_balance=self.registry.low_balance,
        )

    @cached_property
    def steps(self) -> StepTable:
        return make_steps(self, self.transitions)

    @cached_property
    def arrivals(self) -> Arrivals:
        return Arrivals(submit=self.steps.submit, next_steps=self.next_steps)

    @cached_property
    def signing_keys(self) -> WebhookKeys:
        return WebhookKeys.from_settings(self.settings, self.tokens.secrets)

    @cached_property
    def webhook_formats(self) -> dict[str, WebhookFormat]:
        return make_formats(
            FormatContext(
                presenter=self.presenter,
                signing_keys=self.signing_keys,
                secret=self.tokens.secret,
                public_base=lambda: self.address.base,
            )
        )

    @cached_property
    def deliverer(self) -> Deliverer:
        return Deliverer(
            clock=self.clock,
            deliveries=self.tables.deliveries,
            fetcher=self._caller_fetcher(),  # its own: name lookups of requests must not delay deliveries
            formats=self.webhook_formats,
            metrics=self.metrics,
            retention_seconds=self.policy.retention_seconds,
        )

    @cached_property
    def worker(self) -> Worker:
        clock, running, seconds = self.clock, self.running_steps, self.settings.lease
        return Worker(
            clock=clock,
            tasks=self.tables.tasks,
            steps=self.steps,
            submissions=self.submissions,
            callbacks=self.callback_queue,
            deliverer=self.deliverer,
            retention=Retention(
                clock=clock, policy=self.policy, tables=self.tables, blobs=self.blobs, metrics=self.metrics
            ),
            balances=self.balances,
            running=running,
            next_steps=self.next_steps,
            leases=LeaseKeeper(clock=clock, running=running, deliverer=self.deliverer, lease_seconds=seconds),
            clock_guard=ClockGuard(clock=clock),
            chores={"deletions": self.account_deleter.finish_deletions},
        )

    @cached_property
    def collector(self) -> DatabaseCollector:
        return DatabaseCollector(
            clock=self.clock,
            metrics=self.metrics,
            tables=self.tables,
            balances=self.balances,
            read_budget=self.budget.read_usd,
            steps_running=lambda: self.running_steps.count,
            read_sums=self.read_sums,
        )

    # -- orders

    @cached_property
    def answers(self) -> OpenAnswers:
        return OpenAnswers(clock=self.clock, records=self.tables.idempotency, senders=self.tables.answer_senders)

    @cached_property
    def orders(self) -> OrderService:
        return OrderService(
            clock=self.clock,
            policy=self.policy,
            database=self.database,
            tasks=self.tables.tasks,
            images=self.tables.images,
            batches=self.tables.batches,
            queries=self.queries,
            arrivals=self.arrivals,
            planner=Planner(
                clock=self.clock,
                catalog=self.catalog,
                accounts=self.accounts,
                appraiser=Appraiser(catalog=self.catalog, terms=self.registry.terms),
                routing=OrderRouter(
                    router=self.router,
                    prices=self.prices,
                    budget=self.budget,
                    quotas=self.quotas,
                    policy=self.settings.route,
                ),
                prices=self.prices,
                caller_fetcher=self._caller_fetcher(),
            ),
            references=ReferenceIntake(
                clock=self.clock,
                catalog=self.catalog,
                blobs=self.blobs,
                intake=self.intake,
                fetcher=self.fetcher,
                own_images=OwnImages(
                    images=self.tables.images, files=self.files, public_base=lambda: self.address.base
                ),
                max_file_size_bytes=self.settings.max_file_size,
            ),
            idempotency=Idempotency(clock=self.clock, records=self.tables.idempotency, answers=self.answers),
            answers=self.answers,
            limits=OrderLimits(
                limiter=RateLimiter(
                    clock=self.clock, usage=self.tables.rate_limits, per_minute=self.settings.rate_per_minute
                ),
                quotas=self.quotas,
                budget=self.budget,
            ),
            callback_url=self.callback_url,
            image_base=lambda: self.address.base,
            metrics=self.metrics,
        )

    @cached_property
    def files(self) -> FileService:
        return FileService(
            clock=self.clock,
            database=self.database,
            files=self.tables.uploaded_files,
            uploads=self.tables.resumable_uploads,
            quotas=self.quotas,
            blobs=self.blobs,
            intake=self.intake,
            fetcher=self.fetcher,
            metrics=self.metrics,
            max_bytes=self.settings.max_file_size,
            retention_seconds=self.policy.retention_seconds,
        )

    @cached_property
    def budget(self) -> DailyBudget:
        return DailyBudget(clock=self.clock, budgets=self.tables.budgets, limit_usd=self.settings.daily_budget)

    @cached_property
    def quotas(self) -> OwnerQuotas:
        return OwnerQuotas(
            clock=self.clock,
            users=self.tables.users,
            usage=self.tables.owner_usage,
            rows=self.tables.rate_limits,
            defaults=make_limits(self.settings.user_quotas),
        )

    @cached_property
    def prices(self) -> PriceTable:
        return PriceTable(
            max_billed_attempts=self.policy.max_attempts if self.policy.resubmit_unknown else 1,
        )

    def _caller_fetcher(self) -> Fetcher:
        """Return a fetcher for callers' addresses."""
        return Fetcher(allow=self.settings.callback_allow, exemption="BROKER_CALLBACK_ALLOW")

    # -- conversations

    @cached_property
    def conversation_parts(self) -> ConversationParts:
        return make_conversations(self, orders=self.orders, canceler=self.canceler, deleter=self.deleter)

    # -- privacy

    @cached_property
    def account_exporter(self) -> AccountExporter:
        records = OwnerRecords(clock=self.clock, tables=self.tables, users=self.users, presenter=self.presenter)
        return AccountExporter(clock=self.clock, records=records, blobs=self.blobs)

    @cached_property
    def account_deleter(self) -> AccountDeleter:
        return AccountDeleter(
            clock=self.clock,
            tables=self.tables,
            blobs=self.blobs,
            eraser=TaskEraser(
                tables=self.tables,
                blobs=self.blobs,
                transitions=self.transitions,
                canceler=self.canceler,
                callback_step=self.callback_step,
            ),
            get_user=self.users.get,
            end_account=self.users.delete_account,
            delete_conversations=self.conversation_parts.service.delete_of_owner,
        )

    # -- callbacks

    @cached_property
    def verifier(self) -> CallbackVerifier:
        return CallbackVerifier(
            clock=self.clock,
            tasks=self.tables.tasks,
            read_task=self.callback_queue.read_task,
            attempts=self.tables.attempts,
            tokens=self.tokens,
            providers=self.registry.adapters,
            signatures=self.registry.signatures,
        )

    @cached_property
    def receiver(self) -> CallbackReceiver:
        return CallbackReceiver(
            clock=self.clock,
            verifier=self.verifier,
            callbacks=self.tables.callbacks,
            queue=self.callback_queue,
            metrics=self.metrics,
            redactor=Redactor(known_secrets(self.settings, self.tokens.secrets)),
            list_secrets=self.accounts.list_secrets,
        )

    @cached_property
    def inbox(self) -> CallbackInbox:
        return CallbackInbox(
            clock=self.clock,
            policy=self.policy,
            attempts=self.tables.attempts,
            callbacks=self.tables.callbacks,
            callback_step=self.callback_step,
            verifier=self.verifier,
        )

    @cached_property
    def url_monitor(self) -> UrlMonitor:
        """Keeps `address` up to date while it runs."""
        return UrlMonitor(
            address=self.address,
            agents=self.agents,
            probe=ReachabilityProbe(
                client=self.agents.client,
                challenge=ChallengeResponse(self.tokens.secret),
                path=self.provider.callback_path,
            ),
            switch_to_polling=partial(switch_to_polling, self.transitions),
            clock=self.clock,
            metrics=self.metrics,
            is_only_machine=not self.settings.shared,
        )
