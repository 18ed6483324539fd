"""Every long-lived object, opened in order, closed in reverse: the one way to build the system, for tests too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from broker import agreement
from broker.broker import Broker
from broker.catalog import Catalog
from broker.clock import Clock, SystemClock
from broker.credits import Credits
from broker.deliverer import Deliverer
from broker.errors import SettingsError
from broker.forecast import Forecast
from broker.gauges import Gauges
from broker.inbox import Inbox
from broker.lifecycle import Rules
from broker.lookout import Lookout
from broker.metrics import Metrics
from broker.outbox import Outbox
from broker.outgoing import ApiClient, Fetcher
from broker.pacing import CallerPace
from broker.probing import PROBE_SECONDS, Prober
from broker.providers.addresses import adapter_for
from broker.providers.base import Provider
from broker.providers.kie import Kie
from broker.providers.legacy import Legacy
from broker.public_url import Agents, PublicAddress, PublicUrl, check_configured
from broker.retention import Retention
from broker.sentences import Sentences
from broker.settings import Settings
from broker.showing import Showing
from broker.steps import Steps
from broker.thumbnails import Thumbnails
from broker.watchdog import watching
from broker.worker import Worker
from storage.blobs import BlobStore
from storage.chores import Chores
from storage.database import Database
from storage.deliveries import Deliveries
from storage.facts import Facts
from storage.hooks import Hooks
from storage.images import Images
from storage.keys import Keys
from storage.lanes import Lanes, Limits
from storage.local import LocalBlobs
from storage.migrate import known_to_all, upgrade
from storage.sqlite import SqliteDatabase, sqlite_path
from storage.tasks import Tasks
from uploads.intake import Intake
from webhooks.proofs import CallbackTokens, KieSignature, Presence, Signature, Unsigned
from webhooks.signing import StandardSignature, derived_key, read_secret

PLACES = 100
"""kie.ai, Getting Started: an account may usually have 100 and more jobs running."""
DOWNLOADS_AT_ONCE = 20
TURNS = 2
SHARING = 5
"""The migration with which equal results are stored once: older processes would delete what others still need."""
FREE_FLOOR = 64 * 2**20
"""Bytes that images leave free on the disk: the database must always be able to write down what happened."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """The opened system. lookout: keeps `address` true while it is at work."""

    settings: Settings
    clock: Clock
    database: Database
    broker: Broker
    inbox: Inbox
    worker: Worker
    provider: Provider
    metrics: Metrics
    gauges: Gauges
    address: PublicAddress
    lookout: Lookout


def database_for(settings: Settings) -> AbstractAsyncContextManager[Database]:
    """The database that DATABASE_URL names, to be opened."""
    url = settings.database
    if url.startswith("sqlite:"):
        return SqliteDatabase(sqlite_path(url))
    try:
        from storage.postgres import PostgresDatabase
    except ImportError:
        raise _missing("DATABASE_URL leads to Postgres", "postgres") from None
    return PostgresDatabase(
        url,
        listen_url=settings.database_listen_url.get_secret_value(),
        connections=settings.database_connections,
    )


def absent(settings: Settings) -> Path | None:
    """The file of a database that was never made, to say so instead of making it; None if there is a database."""
    if not settings.database.startswith("sqlite:"):
        return None
    path = sqlite_path(settings.database)
    return None if path.exists() else path


@asynccontextmanager
async def blobs_for(settings: Settings) -> AsyncIterator[BlobStore]:
    """The store that BROKER_BLOB_URL names."""
    bucket = settings.bucket
    if bucket is None:
        yield LocalBlobs(settings.blobs, free_floor=FREE_FLOOR)
        return
    try:
        from storage.s3 import S3Blobs
    except ImportError:
        raise _missing("BROKER_BLOB_URL leads to S3", "s3") from None
    store = S3Blobs(
        bucket=bucket.name,
        prefix=bucket.prefix,
        scratch=settings.blobs / ".drafts",
        endpoint=bucket.endpoint,
        region=bucket.region,
        access_key=_revealed(bucket.access_key),
        secret_key=_revealed(bucket.secret_key),
        session_token=_revealed(bucket.session_token),
        links=bucket.links,
        public_base=bucket.public_base,
        free_floor=FREE_FLOOR,
    )
    try:
        yield store
    finally:
        await store.aclose()


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _missing(why: str, extra: str) -> SettingsError:
    return SettingsError(f"{why}, and its driver is not installed: pip install 'nano-banana-broker[{extra}]'")


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    clock: Clock | None = None,
    port: int | None = None,
    local_provider: bool = False,
    joins: bool = True,
    open_database: Callable[[Settings], AbstractAsyncContextManager[Database]] = database_for,
) -> AsyncIterator[Services]:
    """Open the system; on the way out nothing is left open.

    port: the one we really listen on; None without HTTP (then a callback address must be configured).
    local_provider: the provider runs on this machine and reaches us here; no tunnel is looked for (the sandbox).
    joins: this process takes part in the work, and must agree with the others on what they share; otherwise it looks.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        secret = _secret(settings)
        database = await stack.enter_async_context(open_database(settings))
        await database.check()
        await upgrade(database, clock.now())
        if settings.shared and joins:
            await agreement.keep_time(database, clock, settings.lease)
            await agreement.reach(Facts(database), settings, secret)
        client = ApiClient(timeout=settings.request_timeout, max_connections=settings.max_connections)
        stack.push_async_callback(client.aclose)
        fetcher = Fetcher(allow=settings.download_allow, max_connections=DOWNLOADS_AT_ONCE * 2, total_seconds=300)
        stack.push_async_callback(fetcher.aclose)
        scouts = ApiClient(timeout=PROBE_SECONDS, max_connections=16, max_answer_bytes=2**20)
        stack.push_async_callback(scouts.aclose)
        catalog = Catalog.load()
        provider = provider_for(settings, client, catalog, clock)
        blobs = await stack.enter_async_context(blobs_for(settings))
        await blobs.check()
        services = _assemble(
            settings=settings,
            clock=clock,
            database=database,
            fetcher=fetcher,
            catalog=catalog,
            provider=provider,
            blobs=blobs,
            tokens=CallbackTokens(secret),
            address=_address(settings, port, local_provider=local_provider, now=clock.now()),
            agents=Agents(client=scouts, tunnel_api=settings.tunnel_api, port=port or settings.port),
            shares_from=await known_to_all(database, SHARING),
        )
        stack.push_async_callback(services.broker.thumbnails.aclose)
        await stack.enter_async_context(watching(services.metrics))
        if joins and services.address.current is None:
            await services.lookout.begin()
        yield services


def _assemble(
    *,
    settings: Settings,
    clock: Clock,
    database: Database,
    fetcher: Fetcher,
    catalog: Catalog,
    provider: Provider,
    blobs: BlobStore,
    tokens: CallbackTokens,
    address: PublicAddress,
    agents: Agents,
    shares_from: float,
) -> Services:
    def callback_url(task: str, attempt: int) -> str | None:
        base = address.base
        if base is None:
            return None
        token = tokens.token(task, attempt)
        return f"{base}/api/webhook/nano-banana?task={task}&attempt={attempt}&token={token}"

    tasks, images, hooks = Tasks(database), Images(database), Hooks(database)
    keys, lanes, deliveries = Keys(database), Lanes(database), Deliveries(database)
    metrics, rules = Metrics(), _rules(settings)
    showing = Showing(sentences=Sentences.load(), retention=rules.retention)
    intake = Intake(blobs, max_pixels=settings.max_pixels)
    providers = {provider.name: provider}
    outbox = Outbox(clock=clock, deliveries=deliveries, images=images, showing=showing)
    steps = Steps(
        clock=clock,
        rules=rules,
        tasks=tasks,
        images=images,
        hooks=hooks,
        lanes=lanes,
        outbox=outbox,
        blobs=blobs,
        intake=intake,
        fetcher=fetcher,
        providers=providers,
        metrics=metrics,
        callback_url=callback_url,
        image_base=lambda: address.base,
        max_download_bytes=settings.max_download_bytes,
        shares_from=shares_from,
        downloads=asyncio.Semaphore(DOWNLOADS_AT_ONCE),
        turns=asyncio.Semaphore(TURNS),
    )
    broker = Broker(
        clock=clock,
        rules=rules,
        catalog=catalog,
        database=database,
        tasks=tasks,
        images=images,
        hooks=hooks,
        keys=keys,
        deliveries=deliveries,
        blobs=blobs,
        intake=intake,
        fetcher=fetcher,
        caller_fetcher=_caller_fetcher(settings),
        steps=steps,
        provider=provider,
        providers=providers,
        signatures={provider.name: _signature(settings)},
        tokens=tokens,
        metrics=metrics,
        pace=CallerPace(settings.rate_per_minute, clock),
        showing=showing,
        thumbnails=Thumbnails(clock=clock, tasks=tasks, images=images, blobs=blobs, metrics=metrics),
        forecast=Forecast(
            clock=clock,
            tasks=tasks,
            lanes=lanes,
            limits=lambda name: _limits(providers.get(name)),
            models=[model.name for model in catalog.models],
        ),
        max_file_size=settings.max_file_size,
    )
    accounts = Credits(clock=clock, chores=Chores(database), facts=Facts(database), providers=providers)
    worker = Worker(
        clock=clock,
        steps=steps,
        tasks=tasks,
        hooks=hooks,
        lanes=lanes,
        deliverer=Deliverer(
            clock=clock,
            deliveries=deliveries,
            fetcher=_caller_fetcher(settings),  # one of its own: names asked for at the door take no thread from it
            signature=StandardSignature(signing_keys(settings, tokens.secret)),
            metrics=metrics,
        ),
        retention=Retention(
            clock=clock,
            rules=rules,
            database=database,
            tasks=tasks,
            images=images,
            hooks=hooks,
            keys=keys,
            deliveries=deliveries,
            outbox=outbox,
            chores=Chores(database),
            facts=Facts(database),
            blobs=blobs,
            metrics=metrics,
        ),
        accounts=accounts,
        lease=settings.lease,
    )
    return Services(
        settings=settings,
        clock=clock,
        database=database,
        broker=broker,
        inbox=Inbox(broker=broker),
        worker=worker,
        provider=provider,
        metrics=metrics,
        gauges=Gauges(
            clock=clock,
            metrics=metrics,
            tasks=tasks,
            lanes=lanes,
            deliveries=deliveries,
            accounts=accounts,
            steps_running=lambda: worker.busy,
        ),
        address=address,
        lookout=Lookout(
            address=address,
            agents=agents,
            prober=Prober(client=agents.client, presence=Presence(tokens.secret)),
            steps=steps,
            clock=clock,
            metrics=metrics,
            alone=not settings.shared,
        ),
    )


def _address(settings: Settings, port: int | None, *, local_provider: bool, now: float) -> PublicAddress:
    """Ours before any tunnel was looked for. Raises `SettingsError` for a wrong WEBHOOK_BASE_URL."""
    if local_provider:
        return PublicAddress(current=PublicUrl(url=local_address(settings, port), source="local"))
    if settings.webhook_base_url:
        return PublicAddress(current=PublicUrl(url=check_configured(settings.webhook_base_url), source="configured"))
    return PublicAddress(since=now)


def _rules(settings: Settings) -> Rules:
    return Rules(
        check_after=settings.check_after,
        check_most=max(60.0, settings.check_after),
        poll_every=settings.poll_every,
        deadline=settings.task_deadline,
        retry=settings.retry_after,
        resubmit_unknown=settings.resubmit_unknown,
        retention=settings.retention_hours * 3600.0,
    )


def provider_for(settings: Settings, client: ApiClient, catalog: Catalog, clock: Clock) -> Provider:
    kind, base = adapter_for(settings.api_url)
    key = settings.api_key.get_secret_value() if settings.api_key else "sandbox-needs-no-key"
    creates, places = settings.creates_per_10s, settings.max_concurrent or PLACES
    if kind == "legacy":
        return Legacy(
            base_url=base,
            api_key=key,
            client=client,
            catalog=catalog,
            creates_per_10s=creates,
            concurrency=places,
            now=clock.now,
        )
    return Kie(
        name="sandbox" if settings.sandboxed else "kie",
        base_url=base,
        upload_url=settings.upload_url,
        api_key=key,
        client=client,
        catalog=catalog,
        upload_references=settings.upload_references,
        creates_per_10s=creates,
        concurrency=places,
        now=clock.now,
    )


def _limits(provider: Provider | None) -> Limits | None:
    return Limits(creates=provider.creates_per_10s, places=provider.concurrency) if provider else None


def _signature(settings: Settings) -> Signature:
    if settings.webhook_key is None:
        return Unsigned()
    return KieSignature(settings.webhook_key.get_secret_value().encode())


def signing_keys(settings: Settings, secret: bytes) -> list[bytes]:
    """What webhooks to callers are signed with: the keys somebody chose, or one of our own."""
    chosen = [read_secret(key.get_secret_value()) for key in settings.webhook_secrets]
    return chosen or [derived_key(secret)]


def _caller_fetcher(settings: Settings) -> Fetcher:
    """It keeps nothing open between two requests, so there is nothing to close."""
    return Fetcher(allow=settings.callback_allow, exemption="BROKER_CALLBACK_ALLOW")


def local_address(settings: Settings, port: int | None) -> str:
    """How this machine reaches the broker."""
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::", "localhost", ""} else settings.host  # noqa: S104
    return f"http://[{host}]:{port or settings.port}" if ":" in host else f"http://{host}:{port or settings.port}"


def secret_file(settings: Settings) -> Path:
    return settings.data_dir / "secret.key"


def kept_secret(settings: Settings) -> bytes | None:
    """SECRET_KEY, or what was made at the first start; None before that."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = secret_file(settings)
    return path.read_bytes().strip() if path.exists() else None


def _secret(settings: Settings) -> bytes:
    """SECRET_KEY, or one made at the first start and kept for the owner's eyes only."""
    try:
        kept = kept_secret(settings)
        if kept is not None:
            return kept
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        agreement.make_once(secret_file(settings))
        return secret_file(settings).read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"BROKER_DATA_DIR cannot be used ({error.strerror}): make {settings.data_dir} writable, or set another"
        ) from error
