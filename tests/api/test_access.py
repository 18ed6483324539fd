"""Access control: requests through a tunnel, or sent by another web site, are not trusted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from broker.accounts.credentials import Credentials
from broker.api.http.auth import Authenticator, client_address, is_direct_call, require_principal
from broker.api.http.endpoint import Endpoint
from broker.bootstrap import database_for, load_settings
from broker.clock import SystemClock
from broker.errors import ApiError
from storage.sql.migrate import upgrade_schema
from storage.tables import Tables
from tests.support.api import open_api
from tests.support.fuzzing import endpoints_of

pytestmark = pytest.mark.anyio

KEY = "key-of-a-caller-0123456789"
HOST = ("host", "127.0.0.1:8000")


@asynccontextmanager
async def authenticator(folder: Path, *, secret: bytes = b"secret-of-the-tests", **settings: Any) -> AsyncIterator[Any]:
    """Yield the rule of a broker without users: request → principal."""
    chosen = load_settings(env_file=None, data_dir=folder, **settings)
    async with database_for(chosen) as database:
        await upgrade_schema(database, 0.0)
        tables = Tables(database)
        credentials = Credentials(
            clock=SystemClock(),
            users=tables.users,
            sessions=tables.sessions,
            api_keys=tables.api_keys,
            admin_sees_content=False,
        )
        yield Authenticator(settings=chosen, secret=secret, credentials=credentials).authenticate


def request(*headers: tuple[str, str], peer: str | None = "127.0.0.1") -> HTTPConnection:
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]  # as ASGI servers do
    client = (peer, 50000) if peer is not None else None
    return HTTPConnection({"type": "http", "scheme": "http", "client": client, "headers": raw})


def test_http_1_0_is_not_trusted() -> None:
    """nginx without settings of its own sends it, with our own address as `Host` and no forwarding header."""
    scope = request(HOST).scope
    assert is_direct_call(HTTPConnection({**scope, "http_version": "1.1"}))
    assert not is_direct_call(HTTPConnection({**scope, "http_version": "1.0"}))


def trusted(headers: Sequence[tuple[str, str]], *, peer: str | None = "127.0.0.1", cors_origins: Any = ()) -> bool:
    return is_direct_call(request(*headers, peer=peer), cors_origins)


async def known(folder: Path, headers: Sequence[tuple[str, str]], peer: str = "127.0.0.1", **settings: Any) -> bool:
    async with authenticator(folder, **settings) as authenticate:
        return await authenticate(request(*headers, peer=peer)) is not None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.0.0.1:8000",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:8000",
    ],
)
def test_a_direct_call_from_this_machine_is_trusted(host: str) -> None:
    assert trusted([("host", host)])


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_every_loopback_address_is_trusted(peer: str) -> None:
    assert trusted([HOST], peer=peer)


@pytest.mark.parametrize(
    "peer", ["10.0.0.1", "192.168.1.5", "8.8.8.8", "::ffff:10.0.0.1", "fe80::1", "", "unix", "0.0.0.0", None]
)
def test_other_addresses_are_not_trusted(peer: str | None) -> None:
    """A socket without an address is not trusted either."""
    assert not trusted([HOST], peer=peer)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1.evil.com",
        "localhost.evil.com",
        "evil.com",
        "evil.com:8000",
        "127.0.0.1@evil.com",
        "localhost:8000@evil.com",
        "localhost:",
        "localhost:port",
        "localhost:123456",
        "[::1",
        "::1",
        "[::1].evil.com",
        "[::ffff:127.0.0.1]",
        "0.0.0.0:8000",
        "2130706433",
        "0x7f.1",
        "127.1",
        "localhost.",
        "localhost ",
        " localhost",
        "local\u00adhost",
        "abc.ngrok-free.app",
        "",
    ],
)
def test_host_that_is_not_loopback_is_not_trusted(host: str) -> None:
    """A page whose host name resolves to 127.0.0.1 (DNS rebinding) keeps that name in Host."""
    assert not trusted([("host", host)])


def test_missing_or_duplicate_host_is_rejected() -> None:
    assert not trusted([])
    assert not trusted([HOST, HOST])


@pytest.mark.parametrize(
    "name",
    """forwarded Forwarded FORWARDED x-forwarded-for X-Forwarded-For x-forwarded-host x-forwarded-proto X-FORWARDED-ANY
    via Via cf-connecting-ip CF-Ray cf-visitor ngrok-trace-id Ngrok-Skip-Browser-Warning NGROK-X""".split(),
)
def test_forwarded_request_is_not_trusted(name: str) -> None:
    """Tunnels and proxies connect over loopback and add one of these headers; an empty value counts."""
    assert not trusted([HOST, (name, "1")])
    assert not trusted([HOST, (name, "")])


@pytest.mark.parametrize("name", ["forward", "viaduct", "x-cf-ray", "cfray", "forwarded-not", "x-request-id"])
def test_other_headers_do_not_matter(name: str) -> None:
    assert trusted([HOST, (name, "1")])


@pytest.mark.parametrize(
    ("site", "expected"),
    [("cross-site", False), ("same-site", False), ("Cross-Site", False), ("junk", False), ("", False),
     ("same-origin", True), ("none", True)],
)  # fmt: skip
def test_request_of_another_site_is_not_trusted(site: str, expected: bool) -> None:
    assert trusted([HOST, ("sec-fetch-site", site)]) is expected
    assert not trusted([HOST, ("Sec-Fetch-Site", "none"), ("sec-fetch-site", "cross-site")])


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:8000", True),
        ("HTTP://127.0.0.1:8000", True),
        ("https://app.example.com", True),
        ("https://127.0.0.1:8000", False),
        ("http://127.0.0.1:3000", False),
        ("http://127.0.0.1", False),
        ("http://localhost:8000", False),
        ("http://app.example.com", False),
        ("https://app.example.com.evil.com", False),
        ("https://app.example.com/", False),
        ("null", False),
        ("", False),
        ("file://", False),
    ],
)
def test_foreign_origin_is_not_trusted(origin: str, expected: bool) -> None:
    """`null` is what sandboxed frames and local files send: any page."""
    settings: dict[str, Any] = {"cors_origins": ("https://app.example.com",)}
    assert trusted([HOST, ("origin", origin)], **settings) is expected
    assert not trusted([HOST, ("origin", origin), ("Origin", "https://evil.com")], **settings)


KNOWN_VALUES = [
    (f"Bearer {KEY}", True),
    (f"bearer {KEY}", True),
    (f"BEARER   {KEY} ", True),
    (f"Bearer {KEY}x", False),
    (f"Bearer {KEY[:-1]}", False),
    (f"Basic {KEY}", False),
    (KEY, False),
    ("Bearer", False),
    ("Bearer ", False),
    (f"Bearer {KEY} {KEY}", False),
    (f"Bearer {KEY},Bearer {KEY}", False),
    ("Bearer \u00ff\u00fe", False),
    ("", False),
]


async def test_a_known_key_is_trusted_from_anywhere(tmp_path: Path) -> None:
    async with authenticator(tmp_path, api_keys=("another-key-of-the-tests", KEY)) as authenticate:
        for value, expected in KNOWN_VALUES:
            headers = [("host", "public.example.com"), ("x-forwarded-for", "8.8.8.8"), ("Authorization", value)]
            assert (await authenticate(request(*headers, peer="8.8.8.8")) is not None) is expected, value


async def test_duplicate_authorization_is_rejected(tmp_path: Path) -> None:
    """A proxy in front may have checked either of them."""
    two = [HOST, ("authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
    assert not await known(tmp_path, two, api_keys=(KEY,))


async def test_local_call_needs_the_configured_key(tmp_path: Path) -> None:
    assert not await known(tmp_path, [HOST], api_keys=(KEY,))


async def test_keys_outside_ascii_work(tmp_path: Path) -> None:
    key = "schlüssel-für-alle-fälle"
    header = f"Bearer {key}".encode().decode("latin-1")
    assert await known(tmp_path, [HOST, ("authorization", header)], api_keys=(key,))


async def test_anonymous_access_trusts_all_callers(tmp_path: Path) -> None:
    assert await known(tmp_path, [("host", "evil.com"), ("via", "1")], "8.8.8.8", allow_anonymous=True)


async def test_owners_distinguish_callers_and_hold_no_key(tmp_path: Path) -> None:
    """Owners are stored in the database, so they must not reveal a key."""
    keys = (KEY, "another-key-of-the-tests")
    of_key = request(HOST, ("authorization", f"Bearer {KEY}"))
    async with authenticator(tmp_path, api_keys=keys) as authenticate:
        first = (await authenticate(of_key)).owner
        second = (await authenticate(request(HOST, ("authorization", "Bearer another-key-of-the-tests")))).owner
    assert first != second
    assert re.fullmatch("house:key:[0-9a-f]{8}", first)
    async with authenticator(tmp_path, api_keys=keys, secret=b"another-secret") as authenticate:
        assert (await authenticate(of_key)).owner != first
    async with authenticator(tmp_path) as authenticate:
        assert (await authenticate(request(HOST))).owner == "house:local"
    async with authenticator(tmp_path, allow_anonymous=True) as authenticate:
        assert (await authenticate(request())).owner == "house:anonymous"


def test_unauthorized_error_names_the_cure() -> None:
    with pytest.raises(ApiError, match="BROKER_API_KEYS") as caught:
        require_principal(None)
    assert caught.value.status == 401


PATH_VALUES = {
    "/api/task/": f"task_{'0' * 43}",
    "/api/batch/": f"batch_{'0' * 43}",
    "/api/callbacks/": f"callback_{'0' * 24}",
    "/api/deliveries/": f"evt_{'0' * 32}",
    "/uploads/images/": f"generated_{'0' * 43}.png",
    "/uploads/references/": f"reference_{'0' * 43}.png",
    "/api/webhook/": "kie",
    "/api/providers/": "kie",
    "/docs/": "start.js",
    "/fal/": "nothing",
    "/v1/predictions/": f"task_{'0' * 43}",
    "/v1/models/": "nano-banana",
    "/v1/deployments/": "nano-banana",
    "/v1/images/tasks/": f"task_{'0' * 43}",
    "/v1/tasks/": f"task_{'0' * 43}",
}
PUBLIC = """GET / · GET /health · GET /api/task/{id} · GET /api/task/{id}/events · GET /api/batch/{id} ·
    GET /uploads/images/{name} · GET /uploads/references/{name} · GET /fal/.well-known/jwks.json ·
    POST /api/register · POST /api/login · POST /auth/signup · POST /auth/login · GET /me ·
    POST /api/v1/auth/register · POST /api/v1/auth/login · POST /api/v1/auth/refresh ·
    POST /upload/v1beta/files/{upload} · POST /upload/v1/files/{upload} · PUT /fal/storage/uploads/{id}/file"""
PROVIDER = """GET /api/webhook/nano-banana · POST /api/webhook/nano-banana · GET /api/webhook/{provider} ·
    POST /api/webhook/{provider}"""


def sample_path(endpoint: Endpoint) -> str:
    """Return a path of the endpoint with ids that do not exist."""
    value = next((value for start, value in PATH_VALUES.items() if endpoint.path.startswith(start)), "nothing")
    return re.sub(r"\{[a-z]+(:path)?\}", value, endpoint.path)


async def test_the_router_enforces_the_declared_access(tmp_path: Path) -> None:
    """Also before the body is read: the requests have none."""
    async with open_api(tmp_path) as broker:
        forwarded = {"X-Forwarded-For": "8.8.8.8"}
        for endpoint in endpoints_of(broker):
            method, path = endpoint.method, sample_path(endpoint)
            answer = await broker.client.request(method, path, headers=forwarded)
            if endpoint.access in {"caller", "admin"}:
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "BROKER_API_KEYS" in answer.text
                assert (await broker.client.request(method, path)).status_code != 401, path
            else:
                assert answer.status_code in {200, 400, 404}, path


FORWARDED = ("x-forwarded-for", "6.6.6.6, 203.0.113.9")


@pytest.mark.parametrize(
    ("peer", "headers", "address"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", [FORWARDED], "203.0.113.9"),
        ("172.18.0.2", [FORWARDED], "203.0.113.9"),
        ("::1", [("x-forwarded-for", "6.6.6.6"), FORWARDED], "203.0.113.9"),
        ("127.0.0.1", [("x-forwarded-for", " ")], "127.0.0.1"),
        ("8.8.8.8", [FORWARDED], "8.8.8.8"),
        (None, [], ""),
    ],
)
def test_address_of_a_client_is_what_our_own_proxy_saw(
    peer: str | None, headers: list[tuple[str, str]], address: str
) -> None:
    """A client can send the header, too: what it wrote stands before the proxy's word, or comes from the internet."""
    assert client_address(request(HOST, *headers, peer=peer)) == address


async def test_only_the_routes_of_the_contract_are_open(tmp_path: Path) -> None:
    """A route that is declared public by mistake fails here."""
    async with open_api(tmp_path) as broker:
        for access, lines in (("public", PUBLIC), ("provider", PROVIDER)):
            declared = {f"{one.method} {one.path}" for one in endpoints_of(broker) if one.access == access}
            assert declared == {line.strip() for line in lines.split("·")}


async def test_one_key_is_accepted_and_two_are_rejected(tmp_path: Path) -> None:
    async with open_api(tmp_path, api_keys=(KEY,)) as broker:
        assert (await broker.client.get("/api/tasks")).status_code == 401
        right = ("Authorization", f"Bearer {KEY}")
        assert (await broker.client.get("/api/tasks", headers=[right])).status_code == 200
        assert (await broker.client.get("/api/tasks", headers=[right, right])).status_code == 401


async def test_unauthorized_request_is_rejected_before_its_body_is_read(tmp_path: Path) -> None:
    """Otherwise any client could fill the disk with uploads."""
    async with open_api(tmp_path, sockets=True) as broker:
        head = (
            f"POST /api/generate/image HTTP/1.1\r\nHost: evil.example:{broker.port}\r\nContent-Length: 99999999\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\nConnection: close\r\n\r\n"
        )
        answer = await broker.send_raw(head.encode())
        assert answer.startswith(b"HTTP/1.1 401 ")
