"""The compose file: what it starts, the settings that reach the broker, and the check of .env."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from broker.bootstrap import load_settings
from broker.settings import Settings
from tests.deployment.compose import (
    CHECK,
    COMPOSE,
    DEPLOY,
    OTHER_VARIABLES,
    PROCESSES,
    ROOT,
    SERVICES,
    guide_settings,
    service_environment,
)
from tests.support.variables import settings_variables

FULL_SET = {"broker", "broker-2", "worker", "settings", "proxy", "postgres", "objects"}
STARTED = [
    ((), {"broker"}),
    (("tunnel",), {"broker", "ngrok"}),
    (("full",), FULL_SET),
    (("full", "tunnel"), {*FULL_SET, "ngrok"}),
]
NEEDED = (
    "NANO_BANANA_API_KEY",
    "SECRET_KEY",
    "POSTGRES_PASSWORD",
    "OBJECTS_PASSWORD",
    "DATABASE_URL",
    "BROKER_BLOB_URL",
)

# -- docker compose itself, where it is installed


def run_compose(*words: str, profiles: tuple[str, ...] = (), **given: str) -> subprocess.CompletedProcess[str]:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_CONFIG") if name in os.environ}
    flags = [word for profile in profiles for word in ("--profile", profile)]
    command = [docker, "compose", "-f", str(ROOT / "compose.yml"), "--env-file", os.devnull, *flags, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=kept | given)


@pytest.mark.parametrize(("profiles", "expected"), STARTED)
def test_compose_starts_the_services_of_a_profile_and_requires_only_caller_keys(
    profiles: tuple[str, ...], expected: set[str]
) -> None:
    answer = run_compose("config", "--services", profiles=profiles, BROKER_API_KEYS="key")
    assert answer.returncode == 0, answer.stderr
    assert set(answer.stdout.split()) == expected
    refused = run_compose("config", "--services", profiles=profiles)
    assert refused.returncode != 0
    assert "BROKER_API_KEYS" in refused.stderr


@pytest.mark.parametrize("given", [{"BROKER_API_KEYS": "key"}, guide_settings()], ids=["one broker", "full set"])
def test_compose_substitutes_variables_like_these_tests(given: dict[str, str]) -> None:
    answer = run_compose("config", "--format", "json", profiles=("full",), **given)
    assert answer.returncode == 0, answer.stderr
    read = json.loads(answer.stdout)["services"]
    for name in (*PROCESSES, "settings", "objects"):
        assert service_environment(SERVICES[name], **given).items() <= read[name]["environment"].items()


# -- the settings that reach a broker


def test_every_variable_of_the_compose_file_is_a_setting() -> None:
    assert set(SERVICES["broker"]["environment"]) <= set(settings_variables())
    assert set(re.findall(r"\$\{([A-Z0-9_]+)", str(COMPOSE))) - set(settings_variables()) == OTHER_VARIABLES


def test_all_processes_share_one_configuration() -> None:
    """A callback may arrive at a broker that did not submit the task: all need the same secret and stores."""
    environment = SERVICES["broker"]["environment"]
    assert all(service["environment"] == environment for service in PROCESSES.values())
    assert {**CHECK["environment"], **environment} == CHECK["environment"]


@pytest.fixture
def read_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """Return a function that loads the settings of a broker in compose for these variables of .env."""

    def read(**given: str) -> Settings:
        for name in settings_variables():
            monkeypatch.delenv(name, raising=False)
        for name, value in {**given, **service_environment(SERVICES["broker"], **given)}.items():
            monkeypatch.setenv(name, value)
        return load_settings(env_file=None)

    return read


def test_single_broker_keeps_everything_in_its_volume(read_settings: Callable[..., Settings]) -> None:
    settings = read_settings(BROKER_API_KEYS="key")
    assert (settings.database, settings.blob_folder) == ("sqlite:////data/broker.db", Path("/data/blobs"))
    assert settings.bucket is None
    assert settings.sandboxed
    assert settings.secret_key is None


def test_full_set_uses_its_own_postgres_and_object_store(read_settings: Callable[..., Settings]) -> None:
    given = guide_settings()
    settings, postgres, objects = read_settings(**given), SERVICES["postgres"], SERVICES["objects"]
    database, known = urlsplit(settings.database), service_environment(postgres, **given)
    assert (database.hostname, database.port) == ("postgres", 5432)
    assert (database.username, database.password) == (known["POSTGRES_USER"], known["POSTGRES_PASSWORD"])
    assert database.path == f"/{known['POSTGRES_DB']}"
    bucket, keys = settings.bucket, service_environment(objects, **given)
    assert bucket is not None
    assert bucket.endpoint == "http://objects:8333"
    assert bucket.access_key == keys["AWS_ACCESS_KEY_ID"]
    assert bucket.secret_key == keys["AWS_SECRET_ACCESS_KEY"]
    assert bucket.links == "none"
    assert f"-bucket={bucket.name}" in objects["command"]


def test_object_store_of_the_operator_takes_precedence(read_settings: Callable[..., Settings]) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "secret"}
    plain = read_settings(BROKER_BLOB_URL="s3://mine", **keys).bucket
    assert plain is not None
    assert plain.endpoint is None
    assert plain.access_key == "mine"
    given = {**guide_settings(), "AWS_ENDPOINT_URL": "https://s3.example.com", **keys}
    full = read_settings(**given).bucket
    assert full is not None
    assert (full.endpoint, full.access_key) == ("https://s3.example.com", "mine")


def test_broker_finds_the_tunnel_agent_of_compose() -> None:
    tunnel: dict[str, Any] = yaml.safe_load((DEPLOY / "ngrok.yml").read_text("utf-8"))
    upstream = urlsplit(tunnel["endpoints"][0]["upstream"]["url"])
    agent_port = tunnel["agent"]["web_addr"].rpartition(":")[2]
    for service in PROCESSES.values():
        assert service["environment"]["BROKER_PORT"] == str(upstream.port)
        assert service["environment"]["BROKER_TUNNEL_API"] == f"http://ngrok:{agent_port}"


def test_tunnel_of_compose_admits_the_same_requests_as_the_one_in_the_root() -> None:
    here, root = (
        yaml.safe_load((folder / "ngrok.yml").read_text("utf-8"))["endpoints"][0]["traffic_policy"]
        for folder in (DEPLOY, ROOT)
    )
    assert here == root
    assert here["on_http_request"][0]["expressions"]


# -- the check of .env before the full set starts


def run_check(**given: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the service `settings` with the variables that compose gives it."""
    script = DEPLOY / COMPOSE["configs"][CHECK["configs"][0]["source"]]["file"]
    env = {**given, **service_environment(CHECK, **given)}
    return subprocess.run([sys.executable, "-I", script], env=env, capture_output=True, text=True, check=False)


def named_variables(text: str) -> list[str]:
    return [line.split()[0] for line in text.splitlines()[1:]]


def test_check_accepts_the_settings_of_the_guide() -> None:
    answer = run_check(**guide_settings())
    assert (answer.returncode, answer.stderr) == (0, "")


def test_check_names_everything_that_is_missing() -> None:
    answer = run_check()
    assert (answer.returncode, named_variables(answer.stderr)) == (1, list(NEEDED))


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
def test_check_names_a_wrong_variable_and_never_prints_its_value(name: str, value: str) -> None:
    answer = run_check(**{**guide_settings(), name: value})
    assert answer.returncode == 1
    assert name in named_variables(answer.stderr)
    assert value not in answer.stderr


def test_check_accepts_stores_of_the_operator() -> None:
    theirs = {
        "DATABASE_URL": "postgres://me:of-my-own@db.example.com/broker",
        "BROKER_BLOB_URL": "s3://mine",
        "BROKER_BLOB_LINKS": "presigned",
        "AWS_ENDPOINT_URL": "https://s3.example.com",
        "AWS_ACCESS_KEY_ID": "mine",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    assert run_check(**{**guide_settings(), **theirs}).stderr == ""
    given = {name: value for name, value in guide_settings().items() if name != "NANO_BANANA_API_KEY"}
    assert run_check(**given, KIE_API_KEY="key").stderr == ""
