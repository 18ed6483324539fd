"""What we ship for operators does what it says: image, compose file, proxy, tunnel, guide. No engine needed."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from pydantic import SecretStr
from starlette.requests import Request

from broker.api.access import Access
from broker.api.native import FORM_OVERHEAD, LONGEST_WAIT, PING_SECONDS
from broker.catalog import Catalog
from broker.cli.commands import app
from broker.server.uvicorn import DEFAULT_LIMITS
from broker.settings import Settings, load, variables

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
GUIDE = (ROOT / "docs" / "deploying.md").read_text("utf-8")
OURS = "banana-service"
FOREIGN = {"POSTGRES_PASSWORD", "OBJECTS_PASSWORD", "NGROK_AUTHTOKEN", "PROXY_PORT"}
"""Variables of .env that are not the broker's."""

CHECK = SERVICES["settings"]
"""The one that ends when it has looked at .env."""
PROCESSES = {name: service for name, service in SERVICES.items() if service["image"] == OURS and service is not CHECK}
FULL_SET = {"broker", "broker-2", "worker", "settings", "proxy", "postgres", "objects"}
STARTED = [
    ((), {"broker"}),
    (("tunnel",), {"broker", "ngrok"}),
    (("full",), FULL_SET),
    (("full", "tunnel"), {*FULL_SET, "ngrok"}),
]
EACH = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def is_worker(service: dict[str, Any]) -> bool:
    return service.get("command") == ["worker"]


def filled(text: str, **given: str) -> str:
    """As compose does it, from the inside out; what is demanded and missing is empty here."""
    while found := re.search(r"\$\{([A-Z0-9_]+):([-+?])([^${}]*)\}", text):
        name, sign, word = found.groups()
        value = given.get(name, "")
        said = {"-": value or word, "+": word if value else "", "?": value}[sign]
        text = text[: found.start()] + said + text[found.end() :]
    return text


def environment_of(service: dict[str, Any], **given: str) -> dict[str, str]:
    return {name: filled(value, **given) for name, value in service["environment"].items()}


def guide_block() -> dict[str, str]:
    """What the guide puts into .env for the full set, with values in place of its words in angle brackets."""
    (block,) = re.findall(r"```ini\n([^`]*POSTGRES_PASSWORD=[^`]*)```", GUIDE)
    given: dict[str, str] = {}
    for name, value in re.findall(r"(?m)^([A-Z_]+)=(.*)$", block):
        dummy = re.sub(r"<[^>]*>", f"0123456789abcdef{len(given)}", value)
        given[name] = re.sub(r"\$\{(\w+)\}", lambda other: given[other[1]], dummy)
    return given


# -- compose: what starts


@pytest.mark.parametrize(("profiles", "expected"), STARTED)
def test_a_profile_starts_what_it_says_and_nothing_else(profiles: tuple[str, ...], expected: set[str]) -> None:
    started = {
        name
        for name, service in SERVICES.items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }
    assert started == expected


def test_compose_in_the_root_means_this_file() -> None:
    assert yaml.safe_load((ROOT / "compose.yml").read_text("utf-8"))["include"] == ["deploy/compose.yml"]


def test_only_what_every_profile_needs_is_demanded() -> None:
    """compose looks at every ${NAME:?} of a file before it looks at profiles. Without a key for callers a broker in a
    container trusts nobody at all."""
    assert set(re.findall(r"\$\{([A-Z0-9_]+):?\?", str(COMPOSE))) == {"BROKER_API_KEYS"}
    assert all(service["environment"]["BROKER_API_KEYS"].startswith("${BROKER_API_KEYS:?") for service in ours())


def ours() -> list[dict[str, Any]]:
    return [*PROCESSES.values(), CHECK]


def compose() -> list[str]:
    """The command, or a reason why there is none."""
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("there is no docker command on this machine")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin on this machine")
    return [docker, "compose"]


def ask_compose(*words: str, profiles: tuple[str, ...] = (), **given: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    flags = [word for profile in profiles for word in ("--profile", profile)]
    command = [*compose(), "-f", str(ROOT / "compose.yml"), "--env-file", os.devnull, *flags, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=kept | given)


@pytest.mark.parametrize(("profiles", "expected"), STARTED)
def test_compose_itself_starts_the_same_and_demands_a_key_for_callers_only(
    profiles: tuple[str, ...], expected: set[str]
) -> None:
    answer = ask_compose("config", "--services", profiles=profiles, BROKER_API_KEYS="key")
    assert answer.returncode == 0, answer.stderr
    assert set(answer.stdout.split()) == expected
    refused = ask_compose("config", "--services", profiles=profiles)
    assert refused.returncode != 0
    assert "BROKER_API_KEYS" in refused.stderr


@pytest.mark.parametrize("given", [{"BROKER_API_KEYS": "key"}, guide_block()], ids=["one broker", "full set"])
def test_compose_itself_fills_in_the_same(given: dict[str, str]) -> None:
    answer = ask_compose("config", "--format", "json", profiles=("full",), **given)
    assert answer.returncode == 0, answer.stderr
    read = json.loads(answer.stdout)["services"]
    for name in (*PROCESSES, "settings", "objects"):
        assert environment_of(SERVICES[name], **given).items() <= read[name]["environment"].items()


# -- compose: how it runs


@EACH
def test_a_service_holds_no_more_rights_than_it_needs(service: dict[str, Any]) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert not {"privileged", "pid", "devices"} & set(service)
    assert service.get("network_mode", "none") == "none"
    assert not str(service.get("user", "10001")).startswith(("0", "root"))


@EACH
def test_a_service_comes_back_ends_in_peace_and_cannot_take_the_machine_with_it(service: dict[str, Any]) -> None:
    assert service["restart"] == ("no" if service is CHECK else "unless-stopped")
    assert service["init"] is True
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert seconds(service["stop_grace_period"]) >= 10
    assert seconds(service["stop_grace_period"]) > DEFAULT_LIMITS.drain_seconds


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@EACH
def test_a_service_that_listens_has_a_health_check(service: dict[str, Any]) -> None:
    """Ours have the image's own; for a worker that one would fail for ever."""
    if is_worker(service) or service is CHECK:
        assert service["healthcheck"] == {"disable": True}
    elif service["image"] == OURS:
        assert "healthcheck" not in service
    else:
        assert service["healthcheck"]["test"]


@EACH
def test_an_image_is_pinned_to_a_version(service: dict[str, Any]) -> None:
    assert service["image"] == OURS or re.search(r":[0-9][\w.-]*$", service["image"])


def test_a_port_is_open_to_this_machine_only_and_only_where_people_come_in() -> None:
    """The entrances differ by default, because both are open in the full set."""
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {
        "broker": ["127.0.0.1:${BROKER_PORT:-8000}:8000"],
        "proxy": ["127.0.0.1:${PROXY_PORT:-8080}:8000"],
    }


def test_data_is_in_named_volumes() -> None:
    mounted = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounted} == set(COMPOSE["volumes"])
    assert all(f"data:{one('VOLUME')}" in service["volumes"] for service in PROCESSES.values())
    assert one("VOLUME") in CHECK["tmpfs"]


def test_postgres_keeps_its_data_where_version_18_wants_it() -> None:
    """Mounted at …/data, as for 17, the image refuses to start or leaves the data in a volume without a name."""
    postgres = SERVICES["postgres"]
    assert postgres["image"].startswith("postgres:18")
    assert [mount.split(":")[1] for mount in postgres["volumes"]] == ["/var/lib/postgresql"]
    assert "pg_isready" in postgres["healthcheck"]["test"]


def test_the_stores_are_reached_by_brokers_and_workers_only() -> None:
    """The object store has doors that know no password. A broker without any store still needs the way out."""
    networks = {name: service.get("networks", []) for name, service in SERVICES.items()}
    assert COMPOSE["networks"] == {"edge": None, "store": {"internal": True}}
    assert {name for name, of in networks.items() if "store" in of} == {*PROCESSES, "postgres", "objects"}
    assert networks["postgres"] == networks["objects"] == ["store"]
    assert all("edge" in networks[name] for name in (*PROCESSES, "proxy", "ngrok"))
    assert CHECK["network_mode"] == "none"


def test_each_waits_for_what_it_needs_and_for_the_check_before_that() -> None:
    """The broker without a profile must do without what is not there."""
    done, well = {"condition": "service_completed_successfully"}, {"condition": "service_healthy"}
    optional = {"required": False}
    needs: dict[str, dict[str, Any]] = {"settings": done, "postgres": well, "objects": well, "ngrok": well | optional}
    assert SERVICES["broker"]["depends_on"] == {name: how | optional for name, how in needs.items()}
    assert SERVICES["broker-2"]["depends_on"] == SERVICES["worker"]["depends_on"] == needs
    assert SERVICES["proxy"]["depends_on"] == {"settings": done, "broker": well, "broker-2": well}
    assert SERVICES["postgres"]["depends_on"] == SERVICES["objects"]["depends_on"] == {"settings": done}
    assert "depends_on" not in CHECK


# -- compose: settings


def test_every_variable_exists_that_the_broker_is_given_or_the_operator_is_asked_for() -> None:
    assert set(SERVICES["broker"]["environment"]) <= set(variables())
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", str(COMPOSE))) - set(variables()) == FOREIGN


@EACH
def test_no_secret_stands_in_the_file(service: dict[str, Any]) -> None:
    """Whatever is secret is empty, or what the operator gave."""
    given = {name: f"from .env {name}" for name in {*variables(), *FOREIGN}}
    secret = [n for n in service.get("environment", {}) if re.search(r"KEY|PASSWORD|SECRET|TOKEN", n)]
    nothing, all_of_it = (environment_of(service, **known) if secret else {} for known in ({}, given))
    for name in secret:
        if name != "AWS_ACCESS_KEY_ID":
            assert nothing[name] == ""
            assert all_of_it[name] in given.values()
    addresses = [str(value) for value in nothing.values() if "://" in str(value)]
    assert not any("@" in address for address in addresses)


def test_all_processes_share_one_configuration() -> None:
    """One secret above all: a callback may arrive at a broker that did not place the order."""
    environment = SERVICES["broker"]["environment"]
    assert len(PROCESSES) == 3
    assert all(service["environment"] == environment for service in PROCESSES.values())
    assert {"SECRET_KEY", "DATABASE_URL", "BROKER_BLOB_URL", "NANO_BANANA_API_KEY"} <= set(environment)
    assert {**CHECK["environment"], **environment} == CHECK["environment"]
    assert all(service["env_file"] == SERVICES["broker"]["env_file"] for service in ours())


@pytest.fixture
def as_read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """The settings of a broker in compose, for an operator who set these variables."""

    def read(**given: str) -> Settings:
        for name in variables():
            monkeypatch.delenv(name, raising=False)
        for name, value in {**given, **environment_of(SERVICES["broker"], **given)}.items():
            monkeypatch.setenv(name, value)
        return load(env_file=None)

    return read


def test_a_broker_alone_keeps_all_in_its_volume(as_read: Callable[..., Settings]) -> None:
    said = as_read(BROKER_API_KEYS="key")
    assert (said.database, said.blobs) == ("sqlite:////data/broker.db", Path("/data/blobs"))
    assert said.bucket is None
    assert said.sandboxed
    assert said.secret_key is None


def test_the_full_set_is_served_by_what_postgres_and_the_store_expect(as_read: Callable[..., Settings]) -> None:
    given = guide_block()
    said, postgres, objects = as_read(**given), SERVICES["postgres"], SERVICES["objects"]
    database, known = urlsplit(said.database), environment_of(postgres, **given)
    assert (database.hostname, database.port) == ("postgres", 5432)
    assert (database.username, database.password) == (known["POSTGRES_USER"], known["POSTGRES_PASSWORD"])
    assert database.path == f"/{known['POSTGRES_DB']}"
    bucket, keys = said.bucket, environment_of(objects, **given)
    assert bucket is not None
    assert bucket.endpoint == "http://objects:8333"
    assert bucket.access_key == SecretStr(keys["AWS_ACCESS_KEY_ID"])
    assert bucket.secret_key == SecretStr(keys["AWS_SECRET_ACCESS_KEY"])
    assert bucket.links == "none"
    assert f"-bucket={bucket.name}" in objects["command"]
    assert f"/buckets/{bucket.name}/" in str(objects["healthcheck"]["test"])


def test_a_store_of_the_operators_own_wins(as_read: Callable[..., Settings]) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "secret"}
    plain = as_read(BROKER_BLOB_URL="s3://mine", **keys).bucket
    assert plain is not None
    assert plain.endpoint is None
    assert plain.access_key == SecretStr("mine")
    given = {**guide_block(), "AWS_ENDPOINT_URL": "https://s3.example.com", **keys}
    full = as_read(**given).bucket
    assert full is not None
    assert (full.endpoint, full.access_key) == ("https://s3.example.com", SecretStr("mine"))


def test_no_empty_variable_reaches_a_library_that_takes_it_for_a_value() -> None:
    """obstore reads AWS_… by itself, and ends badly at an empty AWS_ENDPOINT_URL; to the broker empty is not set."""
    assert not any(name.startswith("AWS_") for name in SERVICES["broker"]["environment"])


# -- compose: the check of .env before the full set starts


def check(**given: str) -> subprocess.CompletedProcess[str]:
    """What the service runs, with what it is given; it needs nothing that is not in Python."""
    (config,) = CHECK["configs"]
    assert CHECK["entrypoint"] == ["python", config["target"]]
    script = DEPLOY / COMPOSE["configs"][config["source"]]["file"]
    env = {**given, **environment_of(CHECK, **given)}
    return subprocess.run([sys.executable, "-I", script], env=env, capture_output=True, text=True, check=False)


def test_the_check_is_content_with_what_the_guide_says() -> None:
    answer = check(**guide_block())
    assert (answer.returncode, answer.stderr) == (0, "")


NEEDED = (
    "NANO_BANANA_API_KEY",
    "SECRET_KEY",
    "POSTGRES_PASSWORD",
    "OBJECTS_PASSWORD",
    "DATABASE_URL",
    "BROKER_BLOB_URL",
)


@pytest.mark.parametrize("missing", NEEDED)
def test_the_check_names_what_is_missing(missing: str) -> None:
    answer = check(**{name: value for name, value in guide_block().items() if name != missing})
    assert answer.returncode == 1
    assert named(answer.stderr) == [missing, *(["DATABASE_URL"] if missing == "POSTGRES_PASSWORD" else [])]


def named(complaint: str) -> list[str]:
    return [line.split()[0] for line in complaint.splitlines()[1:]]


def test_the_check_names_all_that_is_missing_at_once() -> None:
    answer = check()
    assert answer.returncode == 1
    assert named(answer.stderr) == list(NEEDED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", "fifteen letters"),
        ("POSTGRES_PASSWORD", "p@ss/word"),
        ("OBJECTS_PASSWORD", "two words"),
        ("DATABASE_URL", "sqlite:////data/broker.db"),
        ("DATABASE_URL", "postgresql://broker:another-one@postgres:5432/broker"),
        ("BROKER_BLOB_URL", "file:/data/blobs"),
        ("BROKER_BLOB_URL", "s3://another-bucket/broker"),
        ("BROKER_BLOB_LINKS", "presigned"),
        ("AWS_ACCESS_KEY_ID", "of-another-store"),
        ("AWS_SECRET_ACCESS_KEY", "of-another-store"),
    ],
)
def test_the_check_names_what_does_not_fit_and_never_shows_it(name: str, value: str) -> None:
    answer = check(**{**guide_block(), name: value})
    assert answer.returncode == 1
    assert name in named(answer.stderr)
    assert value not in answer.stderr


def test_the_check_is_content_with_stores_of_the_operators_own() -> None:
    theirs = {
        "DATABASE_URL": "postgres://me:of-my-own@db.example.com/broker",
        "BROKER_BLOB_URL": "s3://mine",
        "BROKER_BLOB_LINKS": "presigned",
        "AWS_ENDPOINT_URL": "https://s3.example.com",
        "AWS_ACCESS_KEY_ID": "mine",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    assert check(**{**guide_block(), **theirs}).stderr == ""
    given = {name: value for name, value in guide_block().items() if name != "NANO_BANANA_API_KEY"}
    assert check(**given, KIE_API_KEY="key").stderr == ""


# -- the tunnel


def tunnel() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "ngrok.yml").read_text("utf-8"))
    return document


def test_the_tunnel_of_compose_lets_in_what_the_tunnel_of_the_desk_lets_in() -> None:
    """tests/test_docs.py tells what that is."""
    (here,), (desk,) = tunnel()["endpoints"], yaml.safe_load((ROOT / "ngrok.yml").read_text("utf-8"))["endpoints"]
    assert here["traffic_policy"] == desk["traffic_policy"]
    assert here["traffic_policy"]["on_http_request"][0]["expressions"]


def test_the_broker_finds_its_tunnel() -> None:
    """It asks the agent once, at its start, and knows its tunnel by the port. It is there with every profile."""
    upstream = urlsplit(tunnel()["endpoints"][0]["upstream"]["url"])
    agent_port = tunnel()["agent"]["web_addr"].rpartition(":")[2]
    assert "profiles" not in PROCESSES[str(upstream.hostname)]
    for service in PROCESSES.values():
        assert service["environment"]["BROKER_PORT"] == str(upstream.port)
        assert service["environment"]["BROKER_TUNNEL_API"] == f"http://ngrok:{agent_port}"
    assert COMPOSE["configs"]["tunnel"] == {"file": "ngrok.yml"}
    assert "authtoken:" not in (DEPLOY / "ngrok.yml").read_text("utf-8")


# -- the proxy

NGINX = (DEPLOY / "nginx.conf").read_text("utf-8")
DIRECTIVES = [
    line.partition(" ")[::2] for line in re.findall(r"(?m)^ *([a-z_]+[^;{}#\n]*);", re.sub(r"(?m)^ *#.*$", "", NGINX))
]


def said(name: str) -> str:
    (value,) = (value for directive, value in DIRECTIVES if directive == name)
    return str(value)


def in_seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_proxy_leads_to_every_broker_and_no_worker() -> None:
    targets = [value.split()[0] for directive, value in DIRECTIVES if directive == "server"]
    brokers = [name for name, service in PROCESSES.items() if not is_worker(service)]
    assert brokers == ["broker", "broker-2"]
    assert targets == [f"{name}:{PROCESSES[name]['environment']['BROKER_PORT']}" for name in brokers]


def test_the_proxy_is_not_told_to_repeat_orders() -> None:
    assert "non_idempotent" not in said("proxy_next_upstream")
    assert set(said("proxy_next_upstream").split()) <= {"error", "timeout"}


def test_the_proxy_waits_longer_than_a_long_poll_and_holds_back_no_event() -> None:
    assert in_seconds(said("proxy_read_timeout")) > max(LONGEST_WAIT, PING_SECONDS)
    (pattern, body) = re.findall(r"location ~ (\S+) \{(.*?)\}", NGINX, re.DOTALL)[0]
    assert re.search(pattern, "/api/task/task_0/events")
    assert not re.search(pattern, "/api/task/task_0")
    assert "proxy_buffering off;" in body


def test_the_proxy_lets_through_the_largest_order() -> None:
    """What is larger is refused by the broker, with a sentence."""
    most = max(model.max_references for model in Catalog.load().models)
    assert said("client_max_body_size").endswith("m")
    assert int(said("client_max_body_size")[:-1]) * 2**20 > most * load(env_file=None).max_file_size + FORM_OVERHEAD


def test_the_proxy_leaves_half_a_head_after_the_time_the_broker_would_give_it() -> None:
    assert in_seconds(said("client_header_timeout")) <= DEFAULT_LIMITS.head_seconds


def test_the_proxy_stays_below_the_connections_that_a_broker_takes_from_one_address() -> None:
    """One more would be cut off, and count as a failure of the broker."""
    most = [int(found) for found in re.findall(r"max_conns=(\d+)", NGINX)]
    assert len(most) == 2
    allowed = int(SERVICES["broker"]["environment"]["BROKER_CONNECTIONS_PER_PEER"])
    assert all(number < allowed for number in most)


def test_the_proxy_says_that_it_forwards() -> None:
    """A broker must never take a request from the proxy for one from its own machine."""
    headers = [value.split()[0].lower() for directive, value in DIRECTIVES if directive == "proxy_set_header"]
    assert {"host", "x-forwarded-for", "x-forwarded-proto"} <= set(headers)
    assert re.search(r"(?m)^ *proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;$", NGINX)
    scope = {
        "type": "http",
        "scheme": "http",
        "client": ("127.0.0.1", 5),
        "headers": [(b"host", b"127.0.0.1:8000"), (b"x-forwarded-for", b"203.0.113.7")],
    }
    assert not trusted(scope)
    assert trusted({**scope, "headers": scope["headers"][:1]})


def trusted(scope: Any) -> bool:
    return Access(load(env_file=None, api_keys=""), b"secret").caller(Request(scope)).trusted


def test_the_proxy_logs_no_query() -> None:
    """The query of a callback holds its token."""
    logged = re.search(r"log_format (.*?);", NGINX, re.DOTALL)
    assert logged
    assert not re.search(r"\$(request|request_uri|args|query_string|http_referer)(?![a-z_])|\$arg_", logged[1])
    assert said("error_log").split()[1] in {"crit", "alert", "emerg"}  # at `error` it writes the line of the request


class Upstream(BaseHTTPRequestHandler):
    """A broker that reads what it is sent and hangs up without an answer, or answers what it was sent."""

    heard: ClassVar[list[dict[str, str]]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._hear()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self._hear()

    def _hear(self) -> None:
        self.heard.append({name.lower(): value for name, value in self.headers.items()})
        if self.path != "/hang-up":
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Down(Upstream):
    """One that is asked for its readiness and is not ready."""

    def do_GET(self) -> None:
        self.send_error(503)


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        return int(sock.getsockname()[1])


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    """The proxy of deploy/, with two brokers of ours behind it; its port."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("there is no nginx on this machine")
    Upstream.heard.clear()
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


def through(port: int, method: str, path: str, body: bytes | None = None) -> int:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body)
        return connection.getresponse().status


@pytest.mark.parametrize("body", [b"an order", None], ids=["with a body", "without one"])
def test_nginx_itself_sends_an_order_once(nginx: int, body: bytes | None) -> None:
    """A broker that hangs up may have ordered already."""
    assert through(nginx, "POST", "/hang-up", body) == 502
    assert len(Upstream.heard) == 1


def test_nginx_itself_asks_the_other_broker_a_question(nginx: int) -> None:
    assert through(nginx, "GET", "/hang-up") == 502
    assert len(Upstream.heard) == 2


def test_nginx_itself_says_that_it_forwards(nginx: int) -> None:
    assert through(nginx, "GET", "/api/webhook/nano-banana?token=secret-token") == 200
    assert Upstream.heard[0]["x-forwarded-for"] == "127.0.0.1"
    assert Upstream.heard[0]["host"] == f"127.0.0.1:{nginx}"


# -- the image


def instructions() -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [(line.split()[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def final() -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    lines = instructions()
    return lines[max(n for n, (word, _) in enumerate(lines) if word == "FROM") :]


def one(word: str) -> str:
    (value,) = (value for name, value in final() if name == word)
    return value


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in one("ENV").split())


def test_the_image_runs_as_nobody_in_particular() -> None:
    """By number, so that an orchestrator can see that it is not root; after everything that needs root."""
    words = [word for word, _ in final()]
    uid, gid = one("USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert words.index("USER") > max(n for n, word in enumerate(words) if word in {"COPY", "RUN"})
    (made,) = (value for word, value in final() if word == "RUN")
    assert f"--uid {uid}" in made
    assert f"--gid {gid}" in made


def test_the_image_installs_what_the_lock_says_and_nothing_else() -> None:
    installs = re.findall(r"pip install ([^&]*)", " && ".join(value for word, value in instructions() if word == "RUN"))
    assert len(installs) == 2
    assert all("--no-deps" in install for install in installs)
    assert "--require-hashes" in installs[0]
    assert "-r requirements.lock" in installs[0]
    assert installs[1].split()[-1] == "."
    assert "--no-build-isolation" in installs[1]
    assert not re.search(r"(?:^| )(-e|--editable)\b", installs[1])
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert all(re.search(rf"(?m)^{name}==", lock) for name in ("asyncpg", "obstore", "setuptools"))


def test_both_stages_have_the_same_python() -> None:
    """A virtual environment only works with the interpreter that it was made with."""
    bases = [value.split()[0] for word, value in instructions() if word == "FROM"]
    assert len(bases) == 2
    assert len(set(bases)) == 1
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim", bases[0])
    assert version
    assert (int(version[1]), int(version[2])) >= (3, 11)


def test_the_image_serves_on_all_of_its_own_interfaces_and_keeps_its_data_on_the_volume() -> None:
    assert environment()["BROKER_HOST"] == "0.0.0.0"
    assert environment()["BROKER_DATA_DIR"] == environment()["TMPDIR"] == one("VOLUME") == one("WORKDIR")
    assert one("EXPOSE") == str(load(env_file=None).port)
    assert one("STOPSIGNAL") == "SIGTERM"
    assert json.loads(one("ENTRYPOINT")) == ["broker"]
    assert json.loads(one("CMD")) == ["serve"]
    assert {name for name in environment() if name.startswith("BROKER_")} <= set(variables())


def test_no_secret_is_built_in() -> None:
    assert not any(word == "ARG" for word, _ in instructions())
    assert not any(re.search(r"KEY|SECRET|TOKEN|PASSWORD", name) for name in environment())


@pytest.fixture
def health_check() -> list[str]:
    command: list[str] = json.loads(one("HEALTHCHECK").partition("CMD ")[2])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def asked(command: list[str], port: int) -> int:
    env = {"BROKER_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, env=env, capture_output=True, check=False, timeout=20).returncode


def test_the_health_check_is_content_with_a_broker_that_answers(health_check: list[str]) -> None:
    with listening(Upstream) as port:
        assert asked(health_check, port) == 0


def test_the_health_check_is_not_content_with_trouble_or_silence(health_check: list[str]) -> None:
    with listening(Down) as port:
        assert asked(health_check, port) == 1
    assert asked(health_check, free_port()) == 1


def test_the_health_check_asks_for_health_at_the_usual_port() -> None:
    check = one("HEALTHCHECK")
    assert f"or {load(env_file=None).port})" in check
    assert "'GET', '/health'" in check


# -- what gets into the image

IGNORE = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and line[0] != "#"]


def let_in(path: str) -> bool:
    """As docker reads .dockerignore: the last line that fits the path, or a folder above it, decides."""
    ignored = False
    for line in IGNORE:
        if any(fits(line.removeprefix("!"), above) for above in [path, *map(str, PurePosixPath(path).parents[:-1])]):
            ignored = not line.startswith("!")
    return not ignored


def fits(pattern: str, path: str) -> bool:
    """`**/` is any number of folders; `*` stays inside one name."""
    parts, names = pattern.split("/"), path.split("/")
    if parts[0] == "**":
        return any(fits("/".join(parts[1:]), "/".join(names[n:])) for n in range(len(names)))
    return len(parts) == len(names) and all(map(fnmatch.fnmatchcase, names, parts))


@pytest.mark.parametrize(
    "path",
    """.env .env.local .git/config data/broker.db data/secret.key .venv/bin/python tests/conftest.py deploy/compose.yml
    broker/.env storage/broker.db storage/broker.db-wal broker/__pycache__/app.cpython-313.pyc uploads/secret.key
    webhooks/.git/config Makefile requirements-dev.lock notes.txt""".split(),
)
def test_nothing_gets_into_the_image_that_was_not_asked_for(path: str) -> None:
    assert not let_in(path)


def copied() -> list[str]:
    """What is taken from our folder."""
    return [
        source
        for word, value in instructions()
        if word == "COPY" and "--from=" not in value
        for source in value.split()[:-1]
    ]


def test_what_the_image_copies_is_there_and_let_in() -> None:
    assert {"requirements.lock", "pyproject.toml", "README.md", "LICENSE"} <= set(copied())
    assert all((ROOT / source).exists() and let_in(source) for source in copied())
    assert "." not in copied()


def test_every_package_gets_into_the_image_with_all_of_its_files() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (include,) = re.findall(r"find = \{ include = \[(.*?)\]", project)
    packages = re.findall(r'"(\w+)\*"', include)
    assert len(packages) >= 4
    assert set(packages) <= set(copied())
    files = [
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".toml", ".sql", ".md", ".typed"} or path.name == "py.typed"
    ]
    assert len(files) > 50
    assert [path for path in files if not let_in(path)] == []


# -- the guide


def test_the_guide_names_only_variables_that_exist() -> None:
    found = set(
        re.findall(r"\b((?:BROKER|NANO_BANANA|WEBHOOK|SECRET|DATABASE|POSTGRES|OBJECTS|NGROK|PROXY)_[A-Z_]+)\b", GUIDE)
    )
    assert len(found) > 5
    assert found - set(variables()) - FOREIGN == set()


def test_the_guide_names_only_commands_that_exist() -> None:
    there = set(getattr(typer.main.get_command(app), "commands", {}))
    found = set(re.findall(r"(?:bin/broker|--no-deps broker|`broker) ([a-z]+)", GUIDE))
    assert found
    assert found <= there


def test_the_guide_names_only_files_and_services_that_exist() -> None:
    assert all((ROOT / path).exists() for path in re.findall(r"\bdeploy/[\w.]+\w", GUIDE))
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    rolled = re.findall(r"up -d --no-deps(?: --wait)? ([\w-]+)", GUIDE)
    assert sorted(rolled) == sorted(PROCESSES)
    assert set(re.findall(r"--profile ([a-z]+)", GUIDE)) == {"full", "tunnel"}
    project = yaml.safe_load((ROOT / "compose.yml").read_text("utf-8"))["name"]
    assert f"{project}_objects" in GUIDE


def test_the_guide_gives_the_number_of_the_user_in_the_image() -> None:
    assert f"install -d -o {one('USER').split(':')[0]}" in " ".join(GUIDE.split())
