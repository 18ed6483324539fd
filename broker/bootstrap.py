"""Every long-lived object, opened in order, closed in reverse: the one way to build the system, for tests too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from pydantic import SecretStr

from broker.callbacks.probe import PROBE_SECONDS
from broker.callbacks.public_url import PublicAddress, PublicUrl, check_configured
from broker.callbacks.tunnels import TunnelAgents
from broker.catalog import Catalog
from broker.clock import Clock, SystemClock
from broker.cluster import check_clock_skew, check_cluster, create_secret_file
from broker.errors import SettingsError
from broker.monitoring.loop_lag import measure_loop_lag
from broker.net.api_client import ApiClient
from broker.net.fetcher import Fetcher
from broker.net.hosts import local_base_url
from broker.providers.addresses import adapter_for
from broker.providers.base import Provider
from broker.providers.kie.adapter import Kie
from broker.providers.legacy.adapter import Legacy
from broker.services import DOWNLOAD_CONCURRENCY, Composition, Services
from broker.settings import Settings
from storage.blobs import BlobStore
from storage.database import Database
from storage.facts import Facts
from storage.local import LocalBlobs
from storage.migrate import upgrade
from storage.sqlite import SqliteDatabase, sqlite_path
from webhooks.tokens import CallbackTokens

PLACES = 100
"""kie.ai, Getting Started: an account may usually have 100 and more jobs running."""
FREE_FLOOR = 64 * 2**20
"""Bytes that images leave free on the disk: the database must always be able to write down what happened."""


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
            await check_clock_skew(database, clock, settings.lease)
            await check_cluster(Facts(database), settings, secret)
        client = ApiClient(timeout=settings.request_timeout, max_connections=settings.max_connections)
        stack.push_async_callback(client.aclose)
        fetcher = Fetcher(allow=settings.download_allow, max_connections=DOWNLOAD_CONCURRENCY * 2, total_seconds=300)
        stack.push_async_callback(fetcher.aclose)
        agent_client = ApiClient(timeout=PROBE_SECONDS, max_connections=16, max_answer_bytes=2**20)
        stack.push_async_callback(agent_client.aclose)
        catalog = Catalog.load()
        provider = provider_for(settings, client, catalog, clock)
        blobs = await stack.enter_async_context(blobs_for(settings))
        await blobs.check()
        services = Composition(
            settings=settings,
            clock=clock,
            database=database,
            fetcher=fetcher,
            catalog=catalog,
            provider=provider,
            blobs=blobs,
            tokens=CallbackTokens(secret),
            address=_address(settings, port, local_provider=local_provider, now=clock.now()),
            agents=TunnelAgents(client=agent_client, tunnel_api=settings.tunnel_api, port=port or settings.port),
        ).services()
        stack.push_async_callback(services.broker.thumbnails.aclose)
        await stack.enter_async_context(measure_loop_lag(services.metrics))
        if joins and services.address.current is None:
            await services.url_monitor.seed()
        yield services


def _address(settings: Settings, port: int | None, *, local_provider: bool, now: float) -> PublicAddress:
    """Return the URL known before tunnels are discovered. Raises `SettingsError` for a wrong WEBHOOK_BASE_URL."""
    if local_provider:
        return PublicAddress(
            current=PublicUrl(url=local_base_url(settings.host, port or settings.port), source="local")
        )
    if settings.webhook_base_url:
        return PublicAddress(current=PublicUrl(url=check_configured(settings.webhook_base_url), source="configured"))
    return PublicAddress(since=now)


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
        always_upload=settings.upload_references,
        creates_per_10s=creates,
        concurrency=places,
        now=clock.now,
    )


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
        create_secret_file(secret_file(settings))
        return secret_file(settings).read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"BROKER_DATA_DIR cannot be used ({error.strerror}): make {settings.data_dir} writable, or set another"
        ) from error
