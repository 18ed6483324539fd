"""The doctor: findings and cures for configurations with one defect each."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from broker.bootstrap import load_settings, salvage_settings
from broker.callbacks.probe import ReachabilityProbe
from broker.clock import SystemClock
from broker.doctor.checks import Check, checks_for, run_checks, storage_failure
from broker.doctor.context import open_context
from broker.doctor.python_version import has_cookie_flaw
from broker.doctor.reachability import probe_server
from broker.net.api_client import ApiClient
from broker.providers.base import Finding
from broker.providers.health import ok
from broker.server.sockets import open_socket
from broker.settings import Settings
from broker.settings.loading import SalvagedSettings
from storage.cluster_state import ClusterState
from storage.errors import StorageError
from storage.limits.provider_limits import ProviderLimits
from storage.sql.migrate import load_migrations, upgrade_schema
from storage.sql.postgres import PostgresDatabase
from storage.sql.sqlite import SqliteDatabase
from tests.support.api import open_api
from tests.support.brokers import open_broker
from tests.support.faulty_http import Script, Visit, answers, serve, silence
from tests.support.servers.ports import free_port
from tests.support.servers.postgres import Postgres
from tests.support.servers.s3 import S3Server
from tests.support.servers.tunnels import an_agent, tunnelling
from tests.support.shell import Shell
from webhooks.tokens import ChallengeResponse

pytestmark = pytest.mark.anyio

KEY = "a-key-of-the-tests"
CLOSED_URL = "http://127.0.0.1:9"
TUNNEL_OFFLINE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 14\r\n\r\nERR_NGROK_3200"


def make_settings(folder: Path, **settings: Any) -> Settings:
    """Return settings of an unused folder whose URLs all lead to a closed port."""
    defaults: dict[str, Any] = {
        "kie_keys": KEY,
        "api_url": CLOSED_URL,
        "upload_url": CLOSED_URL,
        "tunnel_api": CLOSED_URL,
        "data_dir": folder / "data",
        "port": free_port(),
    }
    return load_settings(env_file=None, **{**defaults, **settings})


async def get_findings(
    settings: Settings, *names: str, cloudflared: Sequence[str] = (CLOSED_URL,)
) -> dict[str, Finding]:
    """Return the findings by name. names: checks to run, all by default."""
    async with open_context(SalvagedSettings(settings=settings), SystemClock(), cloudflared) as context:
        checks = [check for check in checks_for(context) if not names or check.name in names]
        return {finding.name: finding async for finding in run_checks(context, checks)}


async def get_finding(settings: Settings, check: str, name: str | None = None, **more: Any) -> tuple[str, str, str]:
    """Return status, finding and cure."""
    finding = (await get_findings(settings, check, **more))[name or check]
    return finding.status, finding.found, finding.cure or ""


# -- what the database knows about the providers


async def get_state(folder: Path, *statements: Any, keys: str = "first-key,second-key") -> list[tuple[str, str, str]]:
    """Return the findings about the providers after these changes of their limits."""
    settings = make_settings(folder, kie_keys=keys)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    async with SqliteDatabase(settings.data_dir / "broker.db") as database:
        await upgrade_schema(database, time.time())
        for change in statements:
            made = change(ProviderLimits(database))
            await database.transact(*(made if isinstance(made, list) else [made]))
    async with open_context(SalvagedSettings(settings=settings), SystemClock()) as context:
        (check,) = (check for check in checks_for(context) if check.name == "provider state")
        return [(one.status, one.found, one.cure or "") async for one in run_checks(context, [check])]


FIRST, SECOND = (hashlib.sha256(key).hexdigest()[:8] for key in (b"first-key", b"second-key"))


def cooldown(key_id: str, reason: str) -> Any:
    return lambda limits: limits.start_cooldown("kie", key_id, time.time() + 600, reason)


async def test_provider_without_problems_is_sound(tmp_path: Path) -> None:
    assert await get_state(tmp_path) == [("ok", "kie: every key takes orders", "")]


async def test_provider_state_is_unknown_before_the_first_start(tmp_path: Path) -> None:
    status, _, _ = await get_finding(make_settings(tmp_path), "provider state")
    assert status == "skipped"


async def test_paused_provider_is_reported(tmp_path: Path) -> None:
    ((status, found, cure),) = await get_state(tmp_path, lambda limits: limits.pause_provider("kie", time.time()))
    assert (status, "kie is paused" in found) == ("warning", True)
    assert cure == "run: broker providers resume kie"


async def test_key_that_was_set_aside_is_reported_with_its_cure(tmp_path: Path) -> None:
    """A key that another one replaces is a warning; without any the provider takes no orders."""
    ((status, found, cure),) = await get_state(tmp_path, cooldown(SECOND, "provider_auth"))
    assert (status, f"it refuses key {SECOND}" in found) == ("warning", True)
    assert cure == "copy the key again into its variable, then run: broker providers resume kie"
    ((status, _, _),) = await get_state(tmp_path / "one", cooldown(FIRST, "provider_auth"), keys="first-key")
    assert status == "failed"


async def test_keys_that_share_an_account_problem_are_reported_together(tmp_path: Path) -> None:
    changes = [cooldown(key_id, "provider_credits") for key_id in (FIRST, SECOND)]
    ((status, found, cure),) = await get_state(tmp_path, *changes)
    assert (status, f"keys {FIRST}, {SECOND}" in found) == ("failed", True)
    assert "share its balance" in cure


async def test_cooldown_of_a_key_is_reported(tmp_path: Path) -> None:
    ((status, found, _),) = await get_state(tmp_path, cooldown(FIRST, "provider_rate_limited"))
    assert (status, f"key {FIRST}: cools down until 20" in found) == ("warning", True)


# -- the provider


def provider_script(credit: Any, *headers: str, status: str = "200 OK") -> Script:
    """Return a script that answers every request, the one for credits as kie.ai does."""

    async def script(visit: Visit) -> None:
        body = credit if visit.path == "/api/v1/chat/credit" else {}
        await answers(status, json.dumps(body).encode(), "Content-Type: application/json", *headers)(visit)

    return script


def credits_of(left: float) -> dict[str, Any]:
    return {"code": 200, "msg": "success", "data": left}


@pytest.mark.parametrize(
    ("answer", "key", "left", "cure"),
    [
        (credits_of(1000), "ok", "ok", ""),
        (credits_of(99.5), "ok", "warning", "top up"),
        (credits_of(3.9), "ok", "failed", "top up"),
        (credits_of(0), "ok", "failed", "top up"),
        ({"code": 402, "msg": "Insufficient credits"}, "ok", "failed", "top up"),
        ({"code": 401, "msg": "You do not have access permissions"}, "failed", "skipped", "NANO_BANANA_API_KEY"),
        ({"code": 404, "msg": "not found"}, "warning", "skipped", "NANO_BANANA_API_URL"),
        ({"code": 455, "msg": "maintenance"}, "skipped", "skipped", ""),
    ],
)
async def test_key_and_credits_are_separate(tmp_path: Path, answer: Any, key: str, left: str, cure: str) -> None:
    async with serve(provider_script(answer)) as server:
        report = await get_findings(make_settings(tmp_path, api_url=server.url().rstrip("/")), "key")
    assert (report["key"].status, report["credits"].status) == (key, left)
    assert cure in f"{report['key'].cure} {report['credits'].cure}"


async def test_key_that_is_not_a_header_value_is_named(tmp_path: Path) -> None:
    async with serve(provider_script({}, status="401 Unauthorized")) as server:
        status, text, cure = await get_finding(make_settings(tmp_path, api_url=server.url().rstrip("/")), "key")
    assert status == "failed"
    assert "NANO_BANANA_API_KEY" in cure
    assert KEY not in text + cure


@asynccontextmanager
async def no_tls() -> AsyncIterator[int]:
    """A port without TLS."""

    async def reject(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(reject, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://nowhere.invalid", "name"),
        (CLOSED_URL, "takes no connection"),
        ("https://127.0.0.1:{plain}", "TLS"),
        ("http://{mute}", "no sound answer"),
    ],
)
async def test_unreachable_provider_is_explained(tmp_path: Path, address: str, words: str) -> None:
    async with no_tls() as plain, serve(answers("rubbish")) as mute:
        url = address.format(plain=plain, mute=mute.host)
        report = await get_findings(
            make_settings(tmp_path, api_url=url, upload_url=url), "provider", "file upload", "key"
        )
    for name, variable in (("provider", "NANO_BANANA_API_URL"), ("file upload", "NANO_BANANA_UPLOAD_URL")):
        assert report[name].status == "failed"
        assert words in report[name].found
        assert variable in (report[name].cure or "") or words == "TLS"
    assert report["key"].status == "skipped"


@pytest.mark.parametrize(
    ("seconds", "age", "status"),
    [
        (0, 0, "ok"),
        (-100, 0, "ok"),
        (200, 0, "warning"),
        (3600, 0, "failed"),
        (-3600, 0, "failed"),
        (-3600, 3600, "ok"),
    ],
)
async def test_wrong_clock_is_found_by_the_providers_date(tmp_path: Path, seconds: int, age: int, status: str) -> None:
    """Signed callbacks are rejected from five minutes on. The age of a cached response is added to its Date."""
    date = formatdate(time.time() + seconds, usegmt=True)
    async with serve(provider_script({}, f"Date: {date}", f"Age: {age}")) as server:
        report = await get_findings(make_settings(tmp_path, api_url=server.url().rstrip("/")), "provider")
    assert report["clock"].status == status
    assert ("NTP" in (report["clock"].cure or "")) == (status != "ok")


@pytest.mark.parametrize("date", ["yesterday", "", "Thu, 99 Foo 2026 00:00:00 GMT"])
async def test_malformed_date_skips_the_clock(tmp_path: Path, date: str) -> None:
    async with serve(provider_script({}, f"Date: {date}")) as server:
        report = await get_findings(make_settings(tmp_path, api_url=server.url().rstrip("/")), "provider")
    assert report["clock"].status == "skipped"


async def test_legacy_provider_is_not_queried_for_credits(tmp_path: Path) -> None:
    async with serve(provider_script({})) as server:
        report = await get_findings(
            make_settings(tmp_path, api_url=server.url("/nano-banana")), "provider", "key", "file upload"
        )
        paths = [head.split()[1] for head in server.heads]
    assert paths == [b"/nano-banana"]
    assert {name: finding.status for name, finding in report.items()} == {
        "provider": "ok",
        "clock": "skipped",
        "key": "skipped",
        "credits": "skipped",
        "file upload": "skipped",
    }


# -- the public address


async def test_without_a_broker_the_doctor_answers_the_probe(tmp_path: Path) -> None:
    """The probe passes the tunnel; afterwards the port is free."""
    settings = make_settings(tmp_path)
    async with an_agent() as agent, tunnelling(settings.port) as tunnel:
        agent.names(tunnel.url, port=settings.port)
        settings = settings.model_copy(update={"tunnel_api": agent.url})
        report = await get_findings(settings, "public address")
        assert (report["public address"].status, report["broker"].status) == ("ok", "skipped")
        assert f"{tunnel.url} (ngrok) leads to this broker" in report["public address"].found
        quick = await get_finding(
            settings.model_copy(update={"tunnel_api": CLOSED_URL}), "public address", cloudflared=[agent.url]
        )
        assert quick[0] == "warning", "no quick tunnel either"
        agent.quick = tunnel.url
        quick = await get_finding(
            settings.model_copy(update={"tunnel_api": CLOSED_URL}), "public address", cloudflared=[agent.url]
        )
        assert (quick[0], "cloudflared" in quick[1]) == ("ok", True)
    with closing(socket.create_server(("127.0.0.1", settings.port))):
        pass


async def test_probe_server_answers_only_probes() -> None:
    port, challenge = free_port(), ChallengeResponse(b"secret")
    nonce = "0" * 32
    async with (
        aclosing(ApiClient(timeout=1, max_connections=1)) as api_client,
        probe_server(
            open_socket("127.0.0.1", port), ReachabilityProbe(client=api_client, challenge=challenge, path="/callback")
        ),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        answer = (await client.get("/callback", params={"probe": nonce})).json()
        assert challenge.is_valid(nonce, answer["probe"])
        assert (await client.get("/callback", params={"probe": "other text"})).status_code == 404
        assert (await client.post("/callback", params={"probe": nonce})).status_code == 405
        assert (await client.get("/api/tasks")).status_code == 404


@pytest.mark.parametrize("edge", [TUNNEL_OFFLINE, None])
async def test_dead_tunnel_is_named_with_its_cure(tmp_path: Path, edge: bytes | None) -> None:
    """With a response of the tunnel's edge, and without one."""
    settings = make_settings(tmp_path)
    async with an_agent() as agent, tunnelling(settings.port) as tunnel:
        agent.names(tunnel.url, port=settings.port)
        tunnel.edge = edge
        if edge is None:
            await tunnel.kill()
        finding = await get_finding(settings.model_copy(update={"tunnel_api": agent.url}), "public address")
        chosen = await get_finding(settings.model_copy(update={"webhook_base_url": tunnel.url}), "public address")
    assert (finding[0], chosen[0]) == ("failed", "failed")
    assert "restart ngrok" in finding[2]
    assert "WEBHOOK_BASE_URL" in chosen[2]


async def test_tunnel_to_another_program_fails(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with serve(answers("200 OK", b'{"status": "ok"}')) as other, tunnelling(other.port) as tunnel:
        finding = await get_finding(settings.model_copy(update={"webhook_base_url": tunnel.url}), "public address")
    assert finding[0] == "failed"
    assert "another server answers there (HTTP 200)" in finding[1]


async def test_tunnel_to_another_port_is_a_warning(tmp_path: Path) -> None:
    async with an_agent() as agent:
        agent.names("https://x.ngrok.app", port=3000)
        settings = make_settings(tmp_path, tunnel_api=agent.url)
        report = await get_findings(settings, "public address")
    assert (report["tunnel"].status, report["public address"].status) == ("warning", "warning")
    assert "leads to port 3000" in report["tunnel"].found
    assert f"ngrok http {settings.port}" in (report["tunnel"].cure or "")


@pytest.mark.parametrize(("keys", "status"), [((), "failed"), (("a-key",), "ok")])
async def test_raw_tunnel_needs_a_key(tmp_path: Path, keys: tuple[str, ...], status: str) -> None:
    """Through it every client appears to be on this machine."""
    async with an_agent() as agent:
        settings = make_settings(tmp_path, tunnel_api=agent.url, api_keys=keys)
        agent.names("tcp://1.tcp.ngrok.io:12345", port=settings.port)
        finding = await get_finding(settings, "public address", "raw tunnel")
        agent.names("tcp://1.tcp.ngrok.io:12345", port=22)
        assert "raw tunnel" not in await get_findings(settings, "public address")
    assert finding[0] == status
    assert ("BROKER_API_KEYS" in finding[2]) == (status == "failed")


async def test_anonymous_access_with_a_public_url_fails(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, allow_anonymous=True)
    assert "anonymous access" not in await get_findings(settings, "public address")
    open_wide = settings.model_copy(update={"webhook_base_url": "https://nowhere.invalid"})
    status, _, cure = await get_finding(open_wide, "public address", "anonymous access")
    assert status == "failed"
    assert "BROKER_ALLOW_ANONYMOUS" in cure


async def test_loopback_base_url_is_a_warning(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, api_url="https://api.kie.ai")
    near = settings.model_copy(update={"webhook_base_url": f"http://127.0.0.1:{settings.port}"})
    status, text, _ = await get_finding(near, "public address")
    assert (status, "no provider can reach it" in text) == ("warning", True)


async def test_port_of_another_program_fails(tmp_path: Path) -> None:
    async with serve(answers("200 OK", b"hello")) as web, serve(silence) as mute:
        for other in (web, mute):
            status, text, cure = await get_finding(make_settings(tmp_path, port=other.port), "public address", "broker")
            assert status == "failed"
            assert f"port {other.port} is taken by another program" in text
            assert "BROKER_PORT" in cure


# -- a broker that runs


async def test_running_broker_is_queried(tmp_path: Path) -> None:
    async with (
        open_api(tmp_path, sockets=True, webhook_base_url="", api_keys=(KEY,)) as broker,
        tunnelling(broker.port) as tunnel,
    ):
        settings = broker.services.settings.model_copy(update={"port": broker.port, "webhook_base_url": tunnel.url})
        report = await get_findings(settings, "public address")
        assert [report[name].status for name in ("broker", "callbacks")] == ["ok", "ok"]
        assert "leads to this broker" in report["public address"].found
        keyless = settings.model_copy(update={"api_keys": (), "broker_key": None})
        status, text, cure = await get_finding(keyless, "public address", "broker")
        assert (status, "no key is set here" in text, "BROKER_API_KEYS" in cure) == ("warning", True, True)
        await broker.services.users.add("ann", "a password of the tests")
        ann = await broker.services.users.get_by_name("ann")
        secret = (await broker.services.key_service.add("laptop", user=ann, expires_days=None)).secret
        status, text, cure = await get_finding(
            keyless.model_copy(update={"broker_key": SecretStr(secret)}), "public address", "broker"
        )
        assert (status, "not an admin's" in text, "BROKER_KEY" in cure) == ("warning", True, True)
        assert "a login or an API key is needed" in (await get_finding(keyless, "access"))[1]
        broker.services.queries.closing = True
        status, text, _ = await get_finding(settings, "public address", "broker")
        assert (status, "server: it is stopping" in text) == ("failed", True)


async def test_broker_with_another_secret_fails_and_receives_no_key(tmp_path: Path) -> None:
    async with open_api(tmp_path / "other", sockets=True) as broker:
        settings = make_settings(tmp_path, port=broker.port, api_keys=("a-key-for-our-broker-only",))
        status, text, cure = await get_finding(settings, "public address", "broker")
    assert status == "failed"
    assert "another secret" in text
    assert "SECRET_KEY" in cure


async def test_missing_callbacks_are_counted(tmp_path: Path) -> None:
    async with open_broker(tmp_path) as broker:
        port = int(str(broker.client.base_url.port))
        settings = broker.services.settings.model_copy(update={"port": port})
        await broker.wait_end(await broker.create_task("a red bicycle [mood:lost]"))
        status, text, cure = await get_finding(settings, "public address", "callbacks")
        assert (status, "1 results had to be polled" in text) == ("warning", True)
        assert "NANO_BANANA_WEBHOOK_KEY" in cure
        await broker.wait_end(await broker.create_task("a green bicycle"))
        assert (await get_finding(settings, "public address", "callbacks"))[0] == "ok"


# -- storage


async def test_new_folder_passes_and_is_left_unchanged(tmp_path: Path) -> None:
    report = await get_findings(make_settings(tmp_path), "database", "images", "disk", "secret")
    assert {finding.status for name, finding in report.items() if name != "SQLite"} <= {"ok", "skipped"}
    assert not (tmp_path / "data").exists()


async def create_database(settings: Settings) -> Path:
    path = settings.data_dir / "broker.db"
    async with SqliteDatabase(path) as database:
        await upgrade_schema(database, 1.0)
    return path


async def test_sound_database_passes_and_is_left_unchanged(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    before = (await create_database(settings)).read_bytes()
    assert (await get_finding(settings, "database"))[0] == "ok"
    assert (settings.data_dir / "broker.db").read_bytes() == before


@pytest.mark.parametrize("message", ["it is full: free some space", "a message without a cure"])
def test_storage_failure_always_has_a_cure(message: str) -> None:
    """A cure that differs from the problem."""
    finding = storage_failure("database", StorageError(message))
    assert message.startswith(finding.found)
    assert finding.cure
    assert finding.cure != finding.found


async def test_damaged_database_fails(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    path = await create_database(settings)
    content = bytearray(path.read_bytes())
    content[4096:20480] = b"\xff" * 16384
    path.write_bytes(content)
    status, text, cure = await get_finding(settings, "database")
    assert status == "failed"
    assert "damaged" in text
    assert "backup" in cure
    path.write_bytes(b"not a database" * 1000)
    status, text, cure = await get_finding(settings, "database")
    assert status == "failed"
    assert "backup" in cure, text


async def test_missing_and_unknown_migrations_are_found(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    path = await create_database(settings)
    async with SqliteDatabase(path) as database:
        await database.execute("DELETE FROM migrations WHERE number = :last", last=load_migrations()[-1].number)
    status, _, cure = await get_finding(settings, "database")
    assert (status, "broker db upgrade" in cure) == ("warning", True)
    async with SqliteDatabase(path) as database:
        await database.execute("INSERT INTO migrations VALUES (9999, 'later', 0)")
    status, _, cure = await get_finding(settings, "database")
    assert (status, "newer broker" in cure) == ("failed", True)


async def test_database_of_another_program_is_found(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    async with SqliteDatabase(settings.data_dir / "broker.db") as database:
        await database.execute("CREATE TABLE users (id INTEGER, username TEXT)")
    status, text, cure = await get_finding(settings, "database")
    assert (status, "another program (users)" in text, "an empty database" in cure) == ("failed", True, True)


async def test_clock_and_secret_of_a_postgres_are_compared(tmp_path: Path, postgres: Postgres) -> None:
    url = await postgres.fresh()
    settings = make_settings(tmp_path, database_url=url, secret_key="the-secret-of-this-machine")
    async with PostgresDatabase(url) as database:
        await upgrade_schema(database, 1.0)
        report = await get_findings(settings, "database")
        assert [report[name].status for name in ("database", "clock of the database")] == ["ok", "ok"]
        assert "shared secret" not in report
        await ClusterState(database).set_if_absent("secret", "that of another machine")
        status, _, cure = await get_finding(settings, "database", "shared secret")
        assert (status, "SECRET_KEY" in cure) == ("failed", True)


async def test_unreachable_postgres_is_shown_without_its_password(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, database_url="postgresql://me:s3cret-word@127.0.0.1:9/broker")
    status, text, cure = await get_finding(settings, "database")
    assert status == "failed"
    assert "s3cret" not in text + cure
    assert "DATABASE_URL" in text + cure


async def test_bucket_finding_names_the_lifecycle_rule(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.new_bucket()
    settings = make_settings(
        tmp_path, blob_url=f"s3://{bucket}", s3_endpoint=s3_server.url, s3_access_key="a", s3_secret_key="b"
    )
    status, text, _ = await get_finding(settings, "images")
    assert (status, "AbortIncompleteMultipartUpload" in text) == ("ok", True)


async def test_missing_bucket_fails(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path, blob_url="s3://pictures", s3_endpoint=CLOSED_URL, s3_access_key="a", s3_secret_key="s3cret-word"
    )
    status, text, cure = await get_finding(settings, "images")
    assert status == "failed"
    assert cure
    assert "s3cret" not in text + cure


async def test_unwritable_folder_fails(tmp_path: Path) -> None:
    status, text, cure = await get_finding(make_settings(tmp_path, data_dir=Path("/proc/nowhere")), "disk")
    assert (status, "/proc cannot be written to" in text, "/proc" in cure) == ("failed", True, True)


def test_full_disk_fails(tmp_path: Path) -> None:
    """A limit on the size of files fails the same system calls."""
    asyncio.run(_create_database_in(tmp_path))
    report = _report(tmp_path, limit=0)
    assert all(check["cure"] for check in report["checks"] if check["status"] == "failed")
    (disk,) = [check for check in report["checks"] if check["name"] == "disk"]
    assert disk["status"] == "failed"
    assert "is full" in disk["found"]
    assert "BROKER_RETENTION_HOURS" in disk["cure"]


async def _create_database_in(folder: Path) -> None:
    async with SqliteDatabase(folder / "data" / "broker.db") as database:
        await upgrade_schema(database, 1.0)


def _report(folder: Path, limit: int | None = None) -> Any:
    ended = subprocess.run(
        [sys.executable, "-m", "broker", "doctor", "--json"],
        cwd=folder,
        env={
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "BROKER_TUNNEL_API": CLOSED_URL,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit is not None else None,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize(
    ("mode", "content", "status", "cure"),
    [
        (0o600, "a" * 64, "ok", ""),
        (0o644, "a" * 64, "failed", "chmod 600"),
        (0o660, "a" * 64, "failed", "chmod 600"),
        (0o600, "", "failed", "restore"),
    ],
)
async def test_secret_readable_by_others_fails(tmp_path: Path, mode: int, content: str, status: str, cure: str) -> None:
    settings = make_settings(tmp_path)
    settings.data_dir.mkdir()
    path = settings.data_dir / "secret.key"
    path.write_text(content)
    path.chmod(mode)
    finding = await get_finding(settings, "secret")
    assert finding[0] == status
    assert cure in finding[2]


# -- file permissions


def make_older_files(settings: Settings) -> None:
    """Create a data folder as a process without the umask did."""
    image = settings.blob_folder / "_1" / "task_1" / "image"
    image.parent.mkdir(parents=True)
    for name in ("broker.db", "broker.db-wal"):
        (settings.data_dir / name).touch()
        (settings.data_dir / name).chmod(0o644)
    image.touch()
    image.chmod(0o640)
    for folder in (settings.data_dir, *image.parents[:3]):
        folder.chmod(0o755)


async def get_modes(settings: Settings) -> tuple[str, str, str]:
    return await get_finding(settings, "file permissions")


@pytest.mark.parametrize("group_read", [False, True])
async def test_older_files_that_others_can_read_are_named_and_cured(tmp_path: Path, group_read: bool) -> None:
    settings = make_settings(tmp_path, blob_group_read=group_read)
    make_older_files(settings)
    status, found, cure = await get_modes(settings)
    assert status == "warning"
    assert f"{settings.data_dir} (mode 755), " in found
    assert f"{settings.data_dir / 'broker.db'} (mode 644)" in found
    assert found.endswith("and more")
    await asyncio.to_thread(subprocess.run, cure, shell=True, check=True)
    assert (await get_modes(settings))[0] == "ok"
    paths = [settings.data_dir, settings.data_dir / "broker.db", settings.blob_folder / "_1" / "task_1"]
    expected = [0o710, 0o600, 0o750] if group_read else [0o700, 0o600, 0o700]
    assert [path.stat().st_mode & 0o777 for path in paths] == expected


async def test_closed_folder_protects_what_is_in_it(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    make_older_files(settings)
    settings.data_dir.chmod(0o700)
    assert await get_modes(settings) == ("ok", "other users of this machine have no access", "")


async def test_only_the_files_of_the_broker_are_named_in_a_folder_of_others(tmp_path: Path) -> None:
    """The cure must not touch the files of other programs."""
    for name in ("my own.db", "app.log", "app.log.2026-11-28", "syslog"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    settings = make_settings(tmp_path, database_url=f"sqlite:///{tmp_path}/my own.db", log_dir=tmp_path)
    status, found, cure = await get_modes(settings)
    assert status == "warning"
    assert "syslog" not in found
    await asyncio.to_thread(subprocess.run, cure, shell=True, check=True)
    assert (await get_modes(settings))[0] == "ok"
    assert (tmp_path / "syslog").stat().st_mode & 0o777 == 0o644


# -- access


@pytest.mark.parametrize(
    ("settings", "name", "status", "words"),
    [
        ({}, "access", "ok", "this machine only"),
        ({"api_keys": ("a-key",)}, "access", "ok", "a key is needed"),
        ({"host": "0.0.0.0"}, "access", "warning", "BROKER_API_KEYS"),
        ({"host": "0.0.0.0", "api_keys": ("a-key",)}, "access", "ok", "a key is needed"),
        ({"host": "0.0.0.0", "allow_anonymous": True}, "access", "warning", "BROKER_ALLOW_ANONYMOUS"),
        ({"cors_origins": ("http://app.example",)}, "origins", "warning", "https://"),
        ({"cors_origins": ("http://localhost:3000", "https://app.example")}, "access", "ok", "this machine only"),
    ],
)
async def test_exposed_access_is_a_warning(
    tmp_path: Path, settings: Mapping[str, Any], name: str, status: str, words: str
) -> None:
    finding = await get_finding(make_settings(tmp_path, **settings), "access", name)
    assert finding[0] == status
    assert words in finding[1] + finding[2]


def test_flawed_python_versions_are_known() -> None:
    assert [has_cookie_flaw(version) for version in [(3, 11, 9), (3, 11, 10), (3, 12, 5), (3, 12, 6)]] == [
        True,
        False,
        True,
        False,
    ]


# -- the report


async def test_failing_or_hanging_check_does_not_affect_others(tmp_path: Path) -> None:
    async def hangs(_: Any) -> list[Finding]:
        await asyncio.Event().wait()
        raise AssertionError

    async def breaks(_: Any) -> list[Finding]:
        raise ZeroDivisionError("with a s3cret in its text")

    async def works(_: Any) -> list[Finding]:
        return [ok("works", "well")]

    checks = [Check(name=name, run=run) for name, run in [("h", hangs), ("b", breaks), ("works", works)]]
    async with open_context(SalvagedSettings(settings=make_settings(tmp_path)), SystemClock()) as context:
        report = [finding async for finding in run_checks(context, checks, seconds=0.05)]
    assert [(finding.name, finding.status) for finding in report] == [("h", "failed"), ("b", "failed"), ("works", "ok")]
    assert all(finding.cure for finding in report[:2])
    assert not any("s3cret" in finding.found for finding in report)


async def test_check_with_a_wrong_setting_is_skipped(tmp_path: Path) -> None:
    salvaged = SalvagedSettings(settings=make_settings(tmp_path), wrong=frozenset({"api_url"}))
    async with open_context(salvaged, SystemClock(), [CLOSED_URL]) as context:
        report = {finding.name: finding async for finding in run_checks(context, checks_for(context))}
    assert [report[name].status for name in ("provider", "key", "file upload")] == ["skipped"] * 3
    assert report["disk"].status == "ok"


SECRETS = {
    "NANO_BANANA_API_KEY": "s3cret-provider",
    "NANO_BANANA_WEBHOOK_KEY": "s3cret-webhook",
    "SECRET_KEY": "s3cret-signature-key",
    "BROKER_API_KEYS": "s3cret-caller,s3cret-another",
    "DATABASE_URL": "postgresql://me:s3cret-database@127.0.0.1:9/broker?sslmode=disable&password=s3cret-query",
    "AWS_SECRET_ACCESS_KEY": "s3cret-bucket",
    "AWS_ACCESS_KEY_ID": "s3cret-bucket-id",
    "BROKER_BLOB_URL": "s3://pictures",
    "AWS_ENDPOINT_URL": CLOSED_URL,
    "NANO_BANANA_API_URL": CLOSED_URL,
    "NANO_BANANA_UPLOAD_URL": CLOSED_URL,
    "WEBHOOK_BASE_URL": CLOSED_URL,
    "BROKER_TUNNEL_API": CLOSED_URL,
    "BROKER_PORT": "1",
}


@pytest.mark.parametrize(
    ("form", "wrong", "code"),
    [((), {}, 1), (("--json",), {"MAX_FILE_SIZE": "s3cret-nonsense", "SECRET_KEY": "s3cret"}, 2)],
)
def test_report_contains_no_secret(tmp_path: Path, form: tuple[str, ...], wrong: dict[str, str], code: int) -> None:
    settings = {**SECRETS, "BROKER_PORT": str(free_port()), **wrong}
    ended = Shell(tmp_path, settings).run("doctor", *form)
    assert ended.code == code, ended.err
    assert "s3cret" not in ended.out + ended.err
    assert "Traceback" not in ended.err
    assert ended.out


def test_wrong_settings_are_all_named_and_the_others_checked(tmp_path: Path) -> None:
    shell = Shell(
        tmp_path,
        {"BROKER_PORT": "eighty", "LOG_LEVEL": "loud", "BROKER_BLOB_URL": "s3:", "BROKER_TUNNEL_API": CLOSED_URL},
    )
    ended = shell.run("doctor")
    assert ended.code == 2
    for name in ("BROKER_PORT", "LOG_LEVEL", "BROKER_BLOB_URL", "disk", "database", "cure: "):
        assert name in ended.out
    report = json.loads(shell.run("doctor", "--json").out)
    assert report["ok"] is False
    assert {check["status"] for check in report["checks"]} <= {"ok", "warning", "failed", "skipped"}
    assert all(check["cure"] for check in report["checks"] if check["status"] in {"warning", "failed"})


def test_binary_settings_file_fails(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    ended = Shell(tmp_path, {"BROKER_TUNNEL_API": CLOSED_URL}).run("doctor")
    assert ended.code == 2
    assert ".env" in ended.out


def test_configuration_without_a_key_passes(tmp_path: Path) -> None:
    """The sandbox needs nothing; the report says that its images are synthetic."""
    ended = Shell(tmp_path, {"BROKER_TUNNEL_API": CLOSED_URL, "BROKER_PORT": str(free_port())}).run("doctor")
    assert ended.code == 0, ended.out
    assert "synthetic images" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_valid_settings_survive_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PORT", "eighty")
    monkeypatch.setenv("KIE_API_KEY", "a-key")
    found = salvage_settings(env_file=None)
    assert found.wrong == {"port"}
    assert (found.settings.port, found.settings.sandboxed) == (8000, False)
    assert len(found.errors) == 1
