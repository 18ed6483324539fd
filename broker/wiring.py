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
from broker.errors import SettingsError
from broker.forecast import Forecast
from broker.gauges import Gauges
from broker.inbox import Inbox
from broker.lifecycle import Rules
from broker.metrics import Metrics
from broker.outgoing import ApiClient, Fetcher
from broker.pacing import CallerPace
from broker.providers.addresses import adapter_for
from broker.providers.base import Provider
from broker.providers.kie import Kie
from broker.providers.legacy import Legacy
from broker.public_url import PublicUrl, find
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
from webhooks.proofs import CallbackTokens, KieSignature, Signature, Unsigned

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
    """The opened system. public_url: None = the provider is asked instead of calling us."""

    settings: Settings
    clock: Clock
    database: Database
    broker: Broker
    inbox: Inbox
    worker: Worker
    provider: Provider
    metrics: Metrics
    gauges: Gauges
    public_url: PublicUrl | None
    callback_base: str | None


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
async def _blobs(settings: Settings) -> AsyncIterator[BlobStore]:
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
        public_url = None if local_provider else await _public_url(settings, port, client)
        base = public_url.url if public_url else _local_address(settings, port) if local_provider else None
        catalog = Catalog.load()
        provider = _provider(settings, client, catalog, clock)
        blobs = await stack.enter_async_context(_blobs(settings))
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
            public_url=public_url,
            base=base,
            shares_from=await known_to_all(database, SHARING),
        )
        stack.push_async_callback(services.broker.thumbnails.aclose)
        await stack.enter_async_context(watching(services.metrics))
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
    public_url: PublicUrl | None,
    base: str | None,
    shares_from: float,
) -> Services:
    def callback_url(task: str, attempt: int) -> str | None:
        if base is None:
            return None
        token = tokens.token(task, attempt)
        return f"{base}/api/webhook/nano-banana?task={task}&attempt={attempt}&token={token}"

    tasks, images, hooks = Tasks(database), Images(database), Hooks(database)
    keys, lanes = Keys(database), Lanes(database)
    metrics, rules = Metrics(), _rules(settings)
    intake = Intake(blobs, max_pixels=settings.max_pixels)
    providers = {provider.name: provider}
    steps = Steps(
        clock=clock,
        rules=rules,
        tasks=tasks,
        images=images,
        hooks=hooks,
        lanes=lanes,
        blobs=blobs,
        intake=intake,
        fetcher=fetcher,
        providers=providers,
        metrics=metrics,
        callback_url=callback_url,
        image_base=lambda: base,
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
        blobs=blobs,
        intake=intake,
        fetcher=fetcher,
        steps=steps,
        provider=provider,
        providers=providers,
        signatures={provider.name: _signature(settings)},
        tokens=tokens,
        metrics=metrics,
        pace=CallerPace(settings.rate_per_minute, clock),
        showing=Showing(sentences=Sentences.load(), retention=rules.retention),
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
        retention=Retention(
            clock=clock,
            rules=rules,
            database=database,
            tasks=tasks,
            images=images,
            hooks=hooks,
            keys=keys,
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
            clock=clock, metrics=metrics, tasks=tasks, lanes=lanes, accounts=accounts, steps_running=lambda: worker.busy
        ),
        public_url=public_url,
        callback_base=base,
    )


async def _public_url(settings: Settings, port: int | None, client: ApiClient) -> PublicUrl | None:
    return await find(
        settings.webhook_base_url, port=port or settings.port, tunnel_api=settings.tunnel_api, client=client
    )


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


def _provider(settings: Settings, client: ApiClient, catalog: Catalog, clock: Clock) -> Provider:
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


def _local_address(settings: Settings, port: int | None) -> str:
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::", "localhost", ""} else settings.host  # noqa: S104
    return f"http://[{host}]:{port or settings.port}" if ":" in host else f"http://{host}:{port or settings.port}"


def _secret(settings: Settings) -> bytes:
    """SECRET_KEY, or one made at the first start and kept for the owner's eyes only."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = settings.data_dir / "secret.key"
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        agreement.make_once(path)
        return path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"BROKER_DATA_DIR cannot be used ({error.strerror}): make {settings.data_dir} writable, or set another"
        ) from error
