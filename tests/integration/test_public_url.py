"""Discovery of tunnels: which reported URLs are used, with any answer and in limited time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.callbacks.public_url import PublicUrl, check_configured
from broker.callbacks.tunnels import CLOUDFLARED_URLS, TunnelAgents
from broker.errors import SettingsError
from broker.net.api_client import ApiClient
from tests.support.faulty_http import Script, answers, rst, sends, serve, silence

pytestmark = pytest.mark.anyio

NOWHERE = "http://127.0.0.1:9"
PORT = 8000


@pytest.fixture
async def client() -> AsyncIterator[ApiClient]:
    client = ApiClient(timeout=5, max_connections=10)
    yield client
    await client.aclose()


def json_answer(value: Any) -> Script:
    return answers("200 OK", json.dumps(value).encode(), "Content-Type: application/json")


def endpoint(url: Any, upstream: Any) -> dict[str, Any]:
    return {"name": "x", "url": url, "upstream": {"url": upstream, "protocol": "http1"}, "metrics": {}}


def tunnel(url: Any, addr: Any) -> dict[str, Any]:
    return {"name": "x", "uri": "/", "public_url": url, "proto": "https", "config": {"addr": addr, "inspect": True}}


async def ask(
    client: ApiClient, *, endpoints: Script, tunnels: Script, quick: Script, seconds: float = 20.0
) -> PublicUrl | None:
    """Return the first tunnel that the agents report. seconds: time of an agent, short where it never responds."""
    scripts = {"/api/endpoints": endpoints, "/api/tunnels": tunnels, "/quicktunnel": quick}
    async with serve(scripts) as server, asyncio.timeout(60):
        agent = server.url("/")
        agents = TunnelAgents(
            client=client, tunnel_api=agent, port=PORT, cloudflared=[NOWHERE, agent.rstrip("/")], seconds=seconds
        )
        return next(iter(await agents.list_candidates()), None)


@pytest.mark.parametrize(
    ("configured", "url"),
    [
        ("https://broker.example.com", "https://broker.example.com"),
        (" https://Broker.example.com:443/ ", "https://broker.example.com"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://example.com/nano/banana/", "https://example.com/nano/banana"),
        ("https://[2606:4700::1]:8443", "https://[2606:4700::1]:8443"),
        ("http://broker:8000", "http://broker:8000"),
    ],
)
def test_configured_url_is_normalized(configured: str, url: str) -> None:
    assert check_configured(configured) == url


@pytest.mark.parametrize(
    "configured",
    """example.com ftp://example.com https:// https:///x https://u:s3cret@example.com https://example.com/?token=s3cret
    https://example.com/? https://example.com/#x https://exa\\mple.com https://127.1 https://example.com:99999
    https://example.com/api/webhook/nano-banana""".split(),
)
def test_wrong_configured_url_stops_the_start_with_a_cure(configured: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_configured(configured)
    assert str(caught.value).startswith("WEBHOOK_BASE_URL: ")
    assert "https://broker.example.com" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "target",
    [f"http://localhost:{PORT}", f"https://127.0.0.1:{PORT}/", f"localhost:{PORT}", f"[::1]:{PORT}", str(PORT), PORT],
)
@pytest.mark.parametrize("old", [False, True])
async def test_ngrok_tunnel_to_our_port_is_used(client: ApiClient, target: Any, old: bool) -> None:
    """Both generations of its API, all spellings of a target, among tunnels to other ports."""
    make = tunnel if old else endpoint
    entries = [
        make("https://other.ngrok.app", "http://localhost:8001"),
        make("tcp://1.tcp.ngrok.io:12345", target),
        make("http://plain.ngrok.app", target),
        make("https://ours.ngrok.app/", target),
        make("https://late.ngrok.app", target),
    ]
    missing = answers("404 Not Found", b"404 page not found")
    found = await ask(
        client,
        endpoints=missing if old else json_answer({"endpoints": entries}),
        tunnels=json_answer({"tunnels": entries}) if old else missing,
        quick=json_answer({"hostname": "x.trycloudflare.com"}),
    )
    assert found == PublicUrl(url="https://ours.ngrok.app", source="ngrok")


async def test_upstream_without_a_port_means_the_default_port(client: ApiClient) -> None:
    script = json_answer({"endpoints": [endpoint("https://ours.ngrok.app", "http://localhost")]})
    async with serve(script) as server:
        (found,) = await TunnelAgents(client=client, tunnel_api=server.url(), port=80, cloudflared=[]).list_candidates()
    assert found == PublicUrl(url="https://ours.ngrok.app", source="ngrok")


async def test_cloudflared_comes_last(client: ApiClient) -> None:
    """It does not report the port of its tunnel."""
    nothing = json_answer({"endpoints": [], "tunnels": []})
    quick = json_answer({"hostname": "a-b-c.trycloudflare.com"})
    found = await ask(client, endpoints=nothing, tunnels=nothing, quick=quick)
    assert found == PublicUrl(url="https://a-b-c.trycloudflare.com", source="cloudflared")
    assert [base.rpartition(":")[2] for base in CLOUDFLARED_URLS] == ["20241", "20242", "20243", "20244", "20245"]


STRANGE_JSON: list[Any] = [
    None,
    [],
    "x",
    7,
    {"endpoints": None, "tunnels": None, "hostname": None},
    {"endpoints": {"a": 1}, "tunnels": "x", "hostname": 7},
    {"endpoints": [None, 1, [], {}], "tunnels": [{"config": None}, {"config": []}], "hostname": ""},
    {"endpoints": [endpoint(None, None)], "tunnels": [tunnel(7, {})], "hostname": "a b"},
    {
        "endpoints": [endpoint("https://", f":{PORT}")],
        "tunnels": [tunnel("https://x", "http://[:1")],
        "hostname": "u@h",
    },
    {"endpoints": [endpoint("https://a/?q", PORT)], "tunnels": [tunnel("x", "http://a:99999")], "hostname": "/x"},
    {"endpoints": [endpoint("https://[", PORT)], "tunnels": [tunnel("tcp://[", PORT)], "hostname": "[x"},
]

STRANGE: dict[str, Script] = {
    "html": answers("200 OK", b"<html>hello</html>"),
    "nothing": answers("204 No Content"),
    "error": answers("500 Error", b'{"hostname": "x.example.com"}'),
    "redirect": answers("302 Found", b"", "Location: https://example.com/"),
    "close": sends(),
    "reset": rst,
    "silence": silence,
    "half": sends(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"hostname":'),
    **{json.dumps(value): json_answer(value) for value in STRANGE_JSON},
}


@pytest.mark.parametrize("name", STRANGE)
async def test_unexpected_agent_answers_are_ignored(client: ApiClient, name: str) -> None:
    """Any program may listen there; it costs a second at most and never the start."""
    script = STRANGE[name]
    assert await ask(client, endpoints=script, tunnels=script, quick=script, seconds=0.3) is None


@pytest.mark.parametrize("tunnel_api", [NOWHERE, "", "nonsense", "ftp://x", "http://[::1"])
async def test_without_agents_the_list_is_empty(client: ApiClient, tunnel_api: str) -> None:
    assert (
        await TunnelAgents(client=client, tunnel_api=tunnel_api, port=PORT, cloudflared=[NOWHERE]).list_candidates()
        == []
    )
