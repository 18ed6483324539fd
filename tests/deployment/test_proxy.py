"""The proxy of deploy/nginx.conf: limits that fit the broker's, and its behaviour where nginx is installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from broker.api.http.request_body import FORM_OVERHEAD_BYTES
from broker.api.native.event_stream import PING_SECONDS
from broker.api.native.schemas import MAX_WAIT_SECONDS
from broker.bootstrap import load_settings
from broker.catalog import Catalog
from broker.server.uvicorn import DEFAULT_LIMITS
from tests.deployment.compose import DEPLOY, PROCESSES, SERVICES, is_worker
from tests.deployment.upstream import Upstream, listening
from tests.support.servers.ports import free_port

NGINX = (DEPLOY / "nginx.conf").read_text("utf-8")
DIRECTIVES = [
    line.partition(" ")[::2] for line in re.findall(r"(?m)^ *([a-z_]+[^;{}#\n]*);", re.sub(r"(?m)^ *#.*$", "", NGINX))
]


def directive_value(name: str) -> str:
    (value,) = (value for directive, value in DIRECTIVES if directive == name)
    return str(value)


def directive_seconds(name: str) -> float:
    return float(directive_value(name).removesuffix("s"))


# -- limits that fit the broker's


def test_proxy_targets_are_the_brokers_without_the_workers() -> None:
    targets = [value.split()[0] for directive, value in DIRECTIVES if directive == "server"]
    brokers = [name for name, service in PROCESSES.items() if not is_worker(service)]
    assert targets == [f"{name}:{PROCESSES[name]['environment']['BROKER_PORT']}" for name in brokers]


def test_proxy_waits_longer_than_a_long_poll_and_does_not_buffer_events() -> None:
    assert directive_seconds("proxy_read_timeout") > max(MAX_WAIT_SECONDS, PING_SECONDS)
    (pattern, body) = re.findall(r"location ~ (\S+) \{(.*?)\}", NGINX, re.DOTALL)[0]
    assert re.search(pattern, "/api/task/task_0/events")
    assert not re.search(pattern, "/api/task/task_0")
    assert "proxy_buffering off;" in body


def test_proxy_accepts_the_largest_order() -> None:
    """A larger one is refused by the broker, with a sentence."""
    most = max(model.max_references for model in Catalog.load().models)
    size = directive_value("client_max_body_size")
    assert size.endswith("m")
    assert int(size[:-1]) * 2**20 > most * load_settings(env_file=None).max_file_size + FORM_OVERHEAD_BYTES


def test_proxy_times_out_half_a_request_head_before_the_broker_does() -> None:
    assert directive_seconds("client_header_timeout") <= DEFAULT_LIMITS.head_seconds


def test_proxy_opens_fewer_connections_than_a_broker_accepts_from_one_address() -> None:
    """One more would be closed, and count as a failure of the broker."""
    most = [int(found) for found in re.findall(r"max_conns=(\d+)", NGINX)]
    allowed = int(SERVICES["broker"]["environment"]["BROKER_CONNECTIONS_PER_PEER"])
    assert most
    assert all(number < allowed for number in most)


def test_proxy_may_not_repeat_an_order() -> None:
    """A broker that hangs up may have submitted it already; `non_idempotent` would send it to the other one."""
    assert set(directive_value("proxy_next_upstream").split()) <= {"error", "timeout"}


def test_proxy_marks_every_request_as_forwarded() -> None:
    """Without these headers a broker could take a request of the proxy for one from its own machine."""
    headers = dict(value.split(maxsplit=1) for directive, value in DIRECTIVES if directive == "proxy_set_header")
    assert headers["X-Forwarded-For"] == "$proxy_add_x_forwarded_for"
    assert {"Host", "X-Forwarded-Proto"} <= set(headers)
    assert "proxy_set_header" not in NGINX.partition("location / {")[2], "in a location, one replaces all of the server"


def test_proxy_logs_no_query() -> None:
    """The query of a callback contains its token."""
    logged = re.search(r"log_format (.*?);", NGINX, re.DOTALL)
    assert logged
    assert not re.search(r"\$(request|request_uri|args|query_string|http_referer)(?![a-z_])|\$arg_", logged[1])
    assert directive_value("error_log").split()[1] in {"crit", "alert", "emerg"}  # `error` logs the request line


# -- nginx itself, where it is installed


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    """Run nginx with the configuration of deploy/ in front of two brokers; yield its port."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("nginx is not installed")
    Upstream.requests.clear()
    with ExitStack() as stack:
        port = free_port()
        text = NGINX.replace("daemon off;", "daemon on;").replace("listen 8000;", f"listen 127.0.0.1:{port};")
        text = text.replace("/tmp/", f"{tmp_path}/").replace("/dev/stdout", f"{tmp_path}/access.log")
        for name in ("broker", "broker-2"):
            # `resolve` is for names, and newer than the nginx of some distributions
            text = text.replace(f"{name}:8000 resolve", f"127.0.0.1:{stack.enter_context(listening(Upstream))}")
        conf = tmp_path / "nginx.conf"
        conf.write_text(text)
        command = [program, "-c", str(conf), "-e", str(tmp_path / "error.log")]
        tried = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert tried.returncode == 0, tried.stderr
        # returns when it listens; it keeps what it is given as output, so a pipe would never end
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10)
        stack.callback(subprocess.run, [*command, "-s", "stop"], check=True, timeout=10)
        yield port


def request_status(port: int, method: str, path: str, body: bytes | None = None) -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body)
        return connection.getresponse().status


@pytest.mark.parametrize("body", [b"an order", None], ids=["with a body", "without one"])
def test_nginx_sends_an_order_only_once(nginx: int, body: bytes | None) -> None:
    """A broker that hangs up may have submitted it already."""
    assert request_status(nginx, "POST", "/hang-up", body) == 502
    assert len(Upstream.requests) == 1


def test_nginx_repeats_a_get_at_the_other_broker(nginx: int) -> None:
    assert request_status(nginx, "GET", "/hang-up") == 502
    assert len(Upstream.requests) == 2


def test_nginx_sets_the_forwarding_headers(nginx: int) -> None:
    assert request_status(nginx, "GET", "/api/webhook/nano-banana?token=secret-token") == 200
    assert Upstream.requests[0]["x-forwarded-for"] == "127.0.0.1"
    assert Upstream.requests[0]["host"] == f"127.0.0.1:{nginx}"
