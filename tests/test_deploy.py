"""What we ship for operators does what it says: image, compose files, proxy, tunnel, guide. No engine needed."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
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
from starlette.requests import Request

from broker.api.access import Access
from broker.api.native import FORM_OVERHEAD, LONGEST_WAIT, PING_SECONDS
from broker.catalog import Catalog
from broker.cli.commands import app
from broker.server import PATIENCE
from broker.settings import load, variables

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
ONE, FULL = DEPLOY / "compose.yml", DEPLOY / "full.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
GUIDE = (ROOT / "docs" / "deploying.md").read_text("utf-8")
OURS = "banana-service"
FOREIGN = {"POSTGRES_PASSWORD", "OBJECTS_PASSWORD", "NGROK_AUTHTOKEN"}
"""Variables of .env that are not the broker's."""

STARTED = [
    (ONE, (), {"broker"}),
    (ONE, ("tunnel",), {"broker", "ngrok"}),
    (FULL, (), {"proxy", "broker-a", "broker-b", "worker", "postgres", "objects"}),
    (FULL, ("tunnel",), {"proxy", "broker-a", "broker-b", "worker", "postgres", "objects", "ngrok"}),
]


def read(file: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    return document


def services(file: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read(file)["services"]
    return found


def of_ours(file: Path) -> dict[str, dict[str, Any]]:
    return {name: service for name, service in services(file).items() if service["image"] == OURS}


def is_worker(service: dict[str, Any]) -> bool:
    return service.get("command") == ["worker"]


EACH = [pytest.param(file, name, id=f"{file.stem}-{name}") for file in (ONE, FULL) for name in services(file)]
BOTH = pytest.mark.parametrize("file", [ONE, FULL], ids=lambda file: file.stem)


# -- compose: what starts


@pytest.mark.parametrize(("file", "profiles", "expected"), STARTED)
def test_a_profile_starts_what_it_says_and_nothing_else(
    file: Path, profiles: tuple[str, ...], expected: set[str]
) -> None:
    """Two systems must not start together: they would have two queues and one provider account."""
    started = {
        name
        for name, service in services(file).items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }
    assert started == expected


def test_compose_in_the_root_means_the_one_broker() -> None:
    assert read(ROOT / "compose.yml")["include"] == [ONE.relative_to(ROOT).as_posix()]


@BOTH
def test_nothing_is_demanded_for_a_profile_that_nobody_asked_for(file: Path) -> None:
    """compose looks at every ${NAME:?} of a file before it looks at profiles."""
    demanding = {name for name, service in services(file).items() if ":?" in str(service)}
    assert demanding
    assert not any(services(file)[name].get("profiles") for name in demanding)


def test_the_one_broker_and_the_full_set_cannot_run_side_by_side_by_mistake() -> None:
    assert services(ONE)["broker"]["ports"] == services(FULL)["proxy"]["ports"]
    assert read(FULL)["name"] != read(ROOT / "compose.yml")["name"]


def compose() -> list[str]:
    """The command, or a reason why there is none."""
    docker = shutil.which("docker")
    if docker is None:
        pytest.skip("there is no docker command on this machine")
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose plugin on this machine")
    return [docker, "compose"]


DUMMIES = {
    "BROKER_API_KEYS": "key",
    "SECRET_KEY": "0123456789abcdef",
    "POSTGRES_PASSWORD": "word",
    "OBJECTS_PASSWORD": "word",
    "KIE_API_KEY": "key",
}


def ask_compose(file: Path, *words: str, **given: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    command = [*compose(), "-f", str(file), "--env-file", os.devnull, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=kept | given)


@pytest.mark.parametrize(("file", "profiles", "expected"), [*STARTED, (ROOT / "compose.yml", (), {"broker"})])
def test_compose_itself_reads_the_files_the_same_way(file: Path, profiles: tuple[str, ...], expected: set[str]) -> None:
    flags = [word for profile in profiles for word in ("--profile", profile)]
    answer = ask_compose(file, *flags, "config", "--services", **DUMMIES)
    assert answer.returncode == 0, answer.stderr
    assert set(answer.stdout.split()) == expected


@pytest.mark.parametrize(("file", "missing"), [(ONE, "BROKER_API_KEYS"), *((FULL, name) for name in DUMMIES)], ids=str)
def test_compose_stops_when_a_secret_is_missing_and_names_it(file: Path, missing: str) -> None:
    given = {name: value for name, value in DUMMIES.items() if name != missing}
    answer = ask_compose(file, "config", "--quiet", **given)
    assert answer.returncode != 0
    assert missing in answer.stderr


# -- compose: how it runs


@pytest.mark.parametrize(("file", "name"), EACH)
def test_a_service_holds_no_more_rights_than_it_needs(file: Path, name: str) -> None:
    service = services(file)[name]
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "/tmp" in service["tmpfs"]
    assert not {"privileged", "network_mode", "pid", "devices"} & set(service)
    assert not str(service.get("user", "10001")).startswith(("0", "root"))


@pytest.mark.parametrize(("file", "name"), EACH)
def test_a_service_comes_back_ends_in_peace_and_cannot_take_the_machine_with_it(file: Path, name: str) -> None:
    service = services(file)[name]
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert seconds(service["stop_grace_period"]) >= 10
    assert seconds(service["stop_grace_period"]) > PATIENCE.drain


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize(("file", "name"), EACH)
def test_a_service_has_a_health_check_but_the_worker_who_listens_nowhere(file: Path, name: str) -> None:
    """Ours have the image's own; for a worker that one would fail for ever."""
    service = services(file)[name]
    if is_worker(service):
        assert service["healthcheck"] == {"disable": True}
    elif service["image"] == OURS:
        assert "healthcheck" not in service
    else:
        assert service["healthcheck"]["test"]


@pytest.mark.parametrize(("file", "name"), EACH)
def test_an_image_is_pinned_to_a_version(file: Path, name: str) -> None:
    image = services(file)[name]["image"]
    assert image == OURS or re.search(r":[0-9][\w.-]*$", image)


@BOTH
def test_a_port_is_open_to_this_machine_only_and_only_where_people_come_in(file: Path) -> None:
    ports = {name: service["ports"] for name, service in services(file).items() if "ports" in service}
    assert set(ports) == {entrance(file)}
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{BROKER_PORT:-8000\}:8000", port) for port in ports[entrance(file)])


def entrance(file: Path) -> str:
    """The one service that the tunnel and people come to."""
    networks = {name: service.get("networks") for name, service in services(file).items()}
    (found,) = (name for name, of in networks.items() if isinstance(of, dict) and "entrance" in str(of))
    return found


@BOTH
def test_data_is_in_named_volumes(file: Path) -> None:
    mounted = [mount for service in services(file).values() for mount in service.get("volumes", [])]
    assert mounted
    assert {mount.split(":")[0] for mount in mounted} == set(read(file)["volumes"])


def test_postgres_keeps_its_data_where_version_18_wants_it() -> None:
    """Mounted at …/data, as for 17, the image refuses to start or leaves the data in a volume without a name."""
    postgres = services(FULL)["postgres"]
    assert postgres["image"].startswith("postgres:18")
    assert [mount.split(":")[1] for mount in postgres["volumes"]] == ["/var/lib/postgresql"]
    assert "pg_isready" in postgres["healthcheck"]["test"]


def test_the_stores_are_reached_by_brokers_and_workers_only() -> None:
    """The object store has doors that know no password."""
    inside = {name for name, service in services(FULL).items() if "store" in service["networks"]}
    assert read(FULL)["networks"]["store"] == {"internal": True}
    assert inside == {*of_ours(FULL), "postgres", "objects"}
    assert all(list(services(FULL)[name]["networks"]) == ["store"] for name in ("postgres", "objects"))


def test_brokers_start_when_the_stores_are_ready() -> None:
    for service in of_ours(FULL).values():
        for store in ("postgres", "objects"):
            assert service["depends_on"][store] == {"condition": "service_healthy"}


# -- compose: settings


@BOTH
def test_every_variable_given_to_the_broker_exists(file: Path) -> None:
    given = {name for service in of_ours(file).values() for name in service["environment"]}
    assert given
    assert given - set(variables()) == set()


@BOTH
def test_every_variable_asked_of_the_operator_exists(file: Path) -> None:
    asked = set(re.findall(r"\$\{([A-Z0-9_]+)", re.sub(r"(?m)^ *#.*$", "", file.read_text("utf-8"))))
    assert asked
    assert asked - set(variables()) - FOREIGN == set()


@BOTH
def test_a_key_for_callers_is_demanded(file: Path) -> None:
    """Without one a broker in a container trusts nobody at all."""
    for service in of_ours(file).values():
        assert service["environment"]["BROKER_API_KEYS"].startswith("${BROKER_API_KEYS:?")


@BOTH
def test_no_secret_stands_in_the_file(file: Path) -> None:
    for service in services(file).values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"KEY|PASSWORD|SECRET|TOKEN", name) and name != "AWS_ACCESS_KEY_ID":
                assert re.fullmatch(r"\$\{[A-Z_]+:[?-].*\}", value), name
            if "://" in str(value):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]*\}|", password(value)), name


def password(address: str) -> str:
    return address.split("://")[1].rpartition("@")[0].partition(":")[2]


def test_all_processes_of_the_full_set_share_one_configuration() -> None:
    """One secret above all: a callback may arrive at a broker that did not place the order."""
    environments = [service["environment"] for service in of_ours(FULL).values()]
    assert len(environments) == 3
    assert all(environment == environments[0] for environment in environments)
    assert {"SECRET_KEY", "DATABASE_URL", "BROKER_BLOB_URL", "NANO_BANANA_API_KEY"} <= set(environments[0])


def test_two_brokers_and_a_worker_are_served_by_what_postgres_and_the_store_expect() -> None:
    environment = services(FULL)["broker-a"]["environment"]
    database, postgres = urlsplit(environment["DATABASE_URL"].replace(":?", "")), services(FULL)["postgres"]
    assert database.hostname in services(FULL)
    assert database.username == postgres["environment"]["POSTGRES_USER"]
    assert database.path == f"/{postgres['environment']['POSTGRES_DB']}"
    objects = services(FULL)["objects"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert objects["environment"][name] == environment[name]
    bucket = urlsplit(environment["BROKER_BLOB_URL"]).hostname
    assert f"-bucket={bucket}" in objects["command"]
    assert f"/buckets/{bucket}/" in str(objects["healthcheck"]["test"])


# -- the tunnel


def tunnel() -> dict[str, Any]:
    return read(DEPLOY / "ngrok.yml")


def test_the_tunnel_of_compose_lets_in_what_the_tunnel_of_the_desk_lets_in() -> None:
    """tests/test_docs.py tells what that is."""
    (here,), (desk,) = tunnel()["endpoints"], read(ROOT / "ngrok.yml")["endpoints"]
    assert here["traffic_policy"] == desk["traffic_policy"]
    assert here["traffic_policy"]["on_http_request"][0]["expressions"]


@BOTH
def test_the_broker_finds_its_tunnel(file: Path) -> None:
    """It asks the agent once, at its start, and knows its tunnel by the port."""
    upstream = urlsplit(tunnel()["endpoints"][0]["upstream"]["url"])
    agent_port = tunnel()["agent"]["web_addr"].rpartition(":")[2]
    assert upstream.hostname in str(services(file)[entrance(file)]["networks"])
    for service in of_ours(file).values():
        assert service["environment"]["BROKER_PORT"] == str(upstream.port)
        assert service["environment"]["BROKER_TUNNEL_API"] == f"http://ngrok:{agent_port}"
        assert service["depends_on"]["ngrok"] == {"condition": "service_healthy", "required": False}
    assert read(file)["configs"]["tunnel"] == {"file": "ngrok.yml"}
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
    brokers = [name for name, service in of_ours(FULL).items() if not is_worker(service)]
    assert len(brokers) == 2
    assert targets == [f"{name}:{services(FULL)[name]['environment']['BROKER_PORT']}" for name in brokers]


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
    assert in_seconds(said("client_header_timeout")) <= PATIENCE.head


def test_the_proxy_stays_below_the_connections_that_a_broker_takes_from_one_address() -> None:
    """One more would be cut off, and count as a failure of the broker."""
    most = [int(found) for found in re.findall(r"max_conns=(\d+)", NGINX)]
    assert len(most) == 2
    assert all(number < PATIENCE.per_peer for number in most)


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
        for name in ("broker-a", "broker-b"):
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
    """.env .env.local .git/config data/broker.db data/secret.key .venv/bin/python tests/conftest.py deploy/full.yml
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
    named = set(
        re.findall(r"\b((?:BROKER|NANO_BANANA|WEBHOOK|SECRET|DATABASE|POSTGRES|OBJECTS|NGROK)_[A-Z_]+)\b", GUIDE)
    )
    assert len(named) > 5
    assert named - set(variables()) - FOREIGN == set()


def test_the_guide_names_only_commands_that_exist() -> None:
    there = set(getattr(typer.main.get_command(app), "commands", {}))
    named = set(re.findall(r"(?:bin/broker|--no-deps broker|`broker) ([a-z]+)", GUIDE))
    assert named
    assert named <= there


def test_the_guide_names_only_files_and_services_that_exist() -> None:
    assert all((ROOT / path).exists() for path in re.findall(r"\bdeploy/[\w.]+\w", GUIDE))
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
    rolled = re.findall(r"--no-deps(?: --wait)? ([a-z]+-[a-z]|worker)\b", GUIDE)
    assert sorted(rolled) == sorted(of_ours(FULL))
    assert f"{read(FULL)['name']}_objects" in GUIDE


def test_the_guide_gives_the_number_of_the_user_in_the_image() -> None:
    assert f"install -d -o {one('USER').split(':')[0]}" in " ".join(GUIDE.split())
