"""Opening the system: settings, then every long-lived object in order, closed in reverse. Tests use the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from broker.accounts.first_admin import prepare_accounts
from broker.accounts.provider_keys import require_sealing_keys
from broker.accounts.sealing import KeyRing
from broker.callbacks.probe import PROBE_SECONDS
from broker.callbacks.public_url import PublicAddress, PublicUrl, check_configured
from broker.callbacks.tunnels import TunnelAgents
from broker.clock import Clock, SystemClock
from broker.cluster import check_clock_skew, check_cluster, create_secret_file
from broker.errors import SettingsError, unusable_folder
from broker.logs import log
from broker.monitoring.database_files import watch_database_files
from broker.monitoring.loop_lag import measure_loop_lag
from broker.monitoring.process_sums import ReadSums
from broker.net.api_client import ApiClient
from broker.net.fetcher import Fetcher
from broker.net.hosts import local_base_url
from broker.providers import registry
from broker.providers.base import ProviderPackage
from broker.providers.registry import ProviderRegistry
from broker.services import Services
from broker.settings import Settings
from broker.settings.loading import SalvagedSettings, read_settings
from broker.tasks.steps.download import DOWNLOAD_CONCURRENCY
from storage.accounts.provider_keys import ProviderKeys
from storage.blobs.local import LocalBlobs
from storage.blobs.store import BlobStore
from storage.cluster_state import ClusterState
from storage.errors import StorageFull
from storage.file_modes import GROUP_PASS_FOLDER
from storage.sql.database import Database
from storage.sql.migrate import upgrade_schema
from storage.sql.sqlite import SqliteDatabase, sqlite_path
from uploads.intake import DECODERS
from uploads.process.messages import ImageProcessSettings
from uploads.process.parent import ImageProcess
from webhooks.tokens import CallbackTokens

LEASE_COLUMNS = ("version", "leased_by", "lease_until")
"""Of `tasks`; what changes in these alone shows in no response."""
CHECK_SECONDS = 0.3
"""For the check of the database. A large SQLite file takes longer, and is checked to its end beside the work."""
FREE_FLOOR = 64 * 2**20
"""Bytes that images leave free on the disk, so that the database can always write."""


def load_settings(
    *,
    env_file: Path | None = Path(".env"),
    extra_providers: Sequence[ProviderPackage] = (),
    isolated: bool = False,
    **overrides: Any,
) -> Settings:
    """Return the settings of this process: the broker's own, and those of every package.

    env_file: read in addition to the environment, which is stronger. overrides: by field or variable name, strongest.
    isolated: read nothing but the overrides.
    Raises `SettingsError` naming each wrong variable, the shape of its value, and the cure.
    """
    packages = registry.settings_classes(extra_providers)
    found = read_settings(packages, env_file=env_file, overrides=overrides, isolated=isolated)
    if found.errors:
        raise SettingsError("\n".join(found.errors))
    return found.settings


def salvage_settings(*, env_file: Path | None = Path(".env")) -> SalvagedSettings:
    """Return settings with defaults in place of wrong values, for a report of everything that is wrong."""
    return read_settings(registry.settings_classes(), env_file=env_file, overrides={})


def database_for(
    settings: Settings,
    *,
    spends_reserve: bool = False,
    own_process: bool = False,
    retry_seconds: float | None = None,
) -> AbstractAsyncContextManager[Database]:
    """Return the database of DATABASE_URL, not yet opened.

    spends_reserve, own_process: see `SqliteDatabase`; on Postgres they change nothing. retry_seconds: see
    `PostgresDatabase`.
    """
    url = settings.database
    if url.startswith("sqlite:"):
        return SqliteDatabase(
            sqlite_path(url), spends_reserve=spends_reserve, own_process=own_process, on_loss=_report_writer_loss
        )
    try:
        from storage.sql.postgres import RETRY_SECONDS, PostgresDatabase
    except ImportError:
        raise _missing_driver("DATABASE_URL leads to Postgres", "postgres") from None
    return PostgresDatabase(
        url,
        listen_url=settings.database_listen_url.get_secret_value(),
        connections=settings.database_connections,
        retry_seconds=retry_seconds or RETRY_SECONDS,
    )


def _report_writer_loss() -> None:
    log.error("the process that writes the database was lost", action="database_writer_lost")


def serving_database(settings: Settings) -> AbstractAsyncContextManager[Database]:
    """Return the database for a process that serves requests or works on tasks, not yet opened."""
    return database_for(settings, own_process=True)


def missing_database_file(settings: Settings) -> Path | None:
    """Return the path of a database file that does not exist; None if there is a database, or it is not a file."""
    if not settings.database.startswith("sqlite:"):
        return None
    path = sqlite_path(settings.database)
    return None if path.exists() else path


@asynccontextmanager
async def blobs_for(settings: Settings, *, free_floor: int = FREE_FLOOR) -> AsyncIterator[BlobStore]:
    """Open the store of BROKER_BLOB_URL. free_floor: bytes that images leave free on the disk."""
    bucket = settings.bucket
    if bucket is None:
        yield LocalBlobs(settings.blob_folder, free_floor=free_floor, group_read=settings.blob_group_read)
        return
    try:
        from storage.blobs.s3 import S3Blobs
    except ImportError:
        raise _missing_driver("BROKER_BLOB_URL leads to S3", "s3") from None
    store = S3Blobs(bucket, scratch=settings.blob_folder / ".drafts", free_floor=free_floor)
    try:
        yield store
    finally:
        await store.aclose()


def _let_group_pass(settings: Settings) -> None:
    """Let the group pass the folders above those of the images: the data folder, and those that do not exist yet.

    It cannot list them, and their files stay closed to it. Other folders are the operator's.
    """
    data_dir = settings.data_dir.absolute()
    try:
        for folder in reversed(settings.blob_folder.absolute().parents):
            is_new = not folder.exists()
            folder.mkdir(exist_ok=True)
            mode = folder.stat().st_mode
            if (is_new or folder.is_relative_to(data_dir)) and not mode & GROUP_PASS_FOLDER:
                folder.chmod(mode | GROUP_PASS_FOLDER)
    except OSError as error:
        raise SettingsError(
            f"BROKER_BLOB_GROUP_READ: the group cannot be let through {folder} ({error.strerror}): give that folder to "
            f"the user who runs the broker, or run: chmod g+x {folder}"
        ) from error


def _missing_driver(why: str, extra: str) -> SettingsError:
    return SettingsError(f"{why}, and its driver is not installed: pip install 'nano-banana-broker[{extra}]'")


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    clock: Clock | None = None,
    port: int | None = None,
    local_provider: bool = False,
    joins: bool = True,
    isolates_images: bool = False,
    free_floor: int = FREE_FLOOR,
    extra_providers: Sequence[ProviderPackage] = (),
    open_database: Callable[[Settings], AbstractAsyncContextManager[Database]] = database_for,
    extra_dialects: Sequence[Callable[[Services], Any]] = (),
    read_sums: ReadSums | None = None,
) -> AsyncIterator[Services]:
    """Open the system; everything is closed on the way out.

    port: the one that the server listens on; None without HTTP (callbacks then need a configured public URL).
    local_provider: the provider runs on this machine, so callbacks need no tunnel (the sandbox).
    joins: the process works on tasks, so it must agree with the others on what they share; otherwise it only reads.
    isolates_images: a child process validates images; for processes that receive many, or from strangers.
    free_floor: bytes that images leave free on the disk; 0 for a process that frees some.
    extra_providers: packages beside those of the registry; `settings` must have been loaded with them.
    extra_dialects: factories of `broker.api.http.endpoint.Dialect`, mounted after the built-in one.
    read_sums: reads the metrics of all processes of a supervisor; None if this process is the only one.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        secret = _ensure_secret(settings)
        database = await stack.enter_async_context(_open_upgraded(open_database(settings), clock))
        if joins:
            await _check_agreement(database, settings, clock, secret)
        client, agent_client, fetcher = await stack.enter_async_context(_open_clients(settings))
        catalog = registry.load_catalog(extra_providers)
        blobs = await stack.enter_async_context(_open_blobs(settings, free_floor))
        isolated = _open_image_process(settings, blobs, free_floor)
        services = Services(
            settings=settings,
            clock=clock,
            database=database,
            task_changes=await database.track_changes("tasks", but=LEASE_COLUMNS) if joins else None,
            fetcher=fetcher,
            catalog=catalog,
            registry=ProviderRegistry(
                settings=settings, client=client, catalog=catalog, now=clock.now, extra=extra_providers
            ),
            blobs=blobs,
            image_work=await stack.enter_async_context(isolated) if isolates_images else None,
            tokens=CallbackTokens(secret, settings.old_secrets),
            address=_initial_address(settings, port, local_provider=local_provider, now=clock.now()),
            agents=TunnelAgents(client=agent_client, tunnel_api=settings.tunnel_api, port=port or settings.port),
            extra_dialects=tuple(extra_dialects),
            read_sums=read_sums,
        )
        stack.push_async_callback(services.thumbnails.aclose)
        stack.push_async_callback(services.answers.aclose)
        if joins:
            await prepare_accounts(services.users, settings)
        await stack.enter_async_context(measure_loop_lag(services.metrics))
        if joins and services.address.current is None:
            await services.url_monitor.seed()
        yield services


@asynccontextmanager
async def _open_clients(settings: Settings) -> AsyncIterator[tuple[ApiClient, ApiClient, Fetcher]]:
    """Open the clients of providers and of tunnel agents, and the fetcher of results and references."""
    async with AsyncExitStack() as stack:
        client = ApiClient(timeout=settings.request_timeout, max_connections=settings.max_connections)
        agent_client = ApiClient(timeout=PROBE_SECONDS, max_connections=16, max_answer_bytes=2**20)
        fetcher = Fetcher(allow=settings.download_allow, max_connections=DOWNLOAD_CONCURRENCY * 2, total_seconds=300)
        for opened in (client, agent_client, fetcher):
            stack.push_async_callback(opened.aclose)
        yield client, agent_client, fetcher


@asynccontextmanager
async def _open_upgraded(opening: AbstractAsyncContextManager[Database], clock: Clock) -> AsyncIterator[Database]:
    """Open the database, with the current schema."""
    async with opening as database:
        await database.check(patience_seconds=CHECK_SECONDS)
        await upgrade_schema(database, clock.now())
        async with watch_database_files(database):
            yield database


async def _check_agreement(database: Database, settings: Settings, clock: Clock, secret: bytes) -> None:
    """Check that this process agrees with the database, and with the others on it. Raises `SettingsError`."""
    if settings.shared:
        await check_clock_skew(database, clock, settings.lease)
        await check_cluster(ClusterState(database), settings, secret)
    await _check_sealing_keys(database, settings, secret)


@asynccontextmanager
async def _open_blobs(settings: Settings, free_floor: int) -> AsyncIterator[BlobStore]:
    """Open and check the store. A full one still serves what it has, and `/ready` reports it."""
    if settings.blob_group_read and settings.bucket is None:
        _let_group_pass(settings)
    async with blobs_for(settings, free_floor=free_floor) as blobs:
        try:
            await blobs.check()
        except StorageFull as error:
            log.warning("no image can be stored", action="store_full", why=str(error))
        yield blobs


@asynccontextmanager
async def _open_image_process(settings: Settings, blobs: BlobStore, free_floor: int) -> AsyncIterator[ImageProcess]:
    """Open the child process that validates images, which starts with the first one."""
    options = ImageProcessSettings(
        max_pixels=settings.max_pixels,
        max_decode_bytes=settings.max_decode_bytes,
        decoders=DECODERS,
        folder=settings.blob_folder if settings.bucket is None else None,
        free_floor=free_floor,
        group_read=settings.blob_group_read,
    )

    def report_loss(reason: str) -> None:
        log.error("the process that validates images was lost", action="image_process_lost", why=reason)

    process = ImageProcess(blobs, options, on_loss=report_loss)
    try:
        yield process
    finally:
        await process.aclose()


def _initial_address(settings: Settings, port: int | None, *, local_provider: bool, now: float) -> PublicAddress:
    """Return the URL known before tunnels are discovered. Raises `SettingsError` for a wrong WEBHOOK_BASE_URL."""
    if local_provider:
        return PublicAddress(
            current=PublicUrl(url=local_base_url(settings.host, port or settings.port), source="local")
        )
    if settings.webhook_base_url:
        return PublicAddress(current=PublicUrl(url=check_configured(settings.webhook_base_url), source="configured"))
    return PublicAddress(since=now)


def secret_file(settings: Settings) -> Path:
    return settings.data_dir / "secret.key"


def existing_secret(settings: Settings) -> bytes | None:
    """Return SECRET_KEY, or the generated secret; None before the first start."""
    if settings.secret_key is not None:
        return settings.secret_key.get_secret_value().encode()
    path = secret_file(settings)
    return path.read_bytes().strip() if path.exists() else None


async def _check_sealing_keys(database: Database, settings: Settings, secret: bytes) -> None:
    """Raise `SettingsError` with the cure if a key in the database is sealed with an unknown SECRET_KEY."""
    path = secret_file(settings)
    # the usual case: SECRET_KEY was set on a machine that had generated one
    hint = f" (the one that was generated here is in {path})" if settings.secret_key and path.exists() else ""
    await require_sealing_keys(ProviderKeys(database), KeyRing.from_secrets(secret, settings.old_secrets), hint=hint)


def _ensure_secret(settings: Settings) -> bytes:
    """Return SECRET_KEY, or a secret generated at the first start, in a file that only its owner can read."""
    try:
        if (kept := existing_secret(settings)) is not None:
            return kept
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        create_secret_file(secret_file(settings))
        return secret_file(settings).read_bytes().strip()
    except OSError as error:
        raise unusable_folder("BROKER_DATA_DIR", settings.data_dir, error) from error
