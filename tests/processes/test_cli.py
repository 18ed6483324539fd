"""Commands in processes of their own: real signals, real HTTP, no terminal."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from PIL import Image

from broker.bootstrap import load_settings
from broker.cli.console import strip_controls
from broker.cli.serve import deployment_warnings
from storage.sql.migrate import upgrade_schema
from storage.sql.sqlite import SqliteDatabase
from storage.states import TaskState
from storage.tasks import Task, Tasks
from tests.support.servers.postgres import Postgres
from tests.support.shell import SECONDS, Shell, serving
from tests.support.small_disk import small_disk
from webhooks.signatures.standard import derived_key, write_secret

KEY = "a-key-of-a-trusted-caller"
OLD = 1_000_000_000.0
QUICK = "slow:0.1"
"""Mood of a job that takes a tenth of a second."""
REFUSED = f"[mood:flagged] [mood:{QUICK}]"


def accepts_connections(address: str) -> bool:
    with socket.socket() as probe:
        answered = probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0
        # without a listener, the system may give the probe that very port, and it reaches itself
        return answered and probe.getsockname() != probe.getpeername()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Yield a shell whose port is free."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return Shell(tmp_path, {"BROKER_PORT": str(port)})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """Yield a shell next to a running broker with the sandbox as its provider."""
    folder = tmp_path_factory.mktemp("served")
    settings = {"BROKER_API_KEYS": KEY, "BROKER_SANDBOX_MOOD": QUICK}
    with serving(Shell(folder, settings), "serve", "--port", "0") as (_, address):
        yield Shell(folder, {"BROKER_API_KEYS": KEY, "BROKER_PORT": address.rpartition(":")[2]})


# -- start


def test_help_names_every_command(shell: Shell) -> None:
    ended = shell.run("--help")
    assert ended.code == 0
    names = "demo serve worker sandbox generate mcp doctor cleanup db task tasks cancel retry delete pin unpin".split()
    names += "callbacks webhooks providers costs secrets keys".split()
    assert [name for name in names if f" {name} " not in ended.out] == []


def test_help_imports_no_heavy_module() -> None:
    """A slow `--help` would be the first impression."""
    heavy = "httpx uvicorn starlette pydantic PIL aiosqlite anyio"
    code = f"import sys, broker.cli.commands; print(*(m for m in {heavy.split()} if m in sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=SECONDS)
    assert (ended.stdout, ended.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"BROKER_PORT": "eighty-eighty"}, "BROKER_PORT"),
        ({"SECRET_KEY": "too-short"}, "SECRET_KEY"),
        ({"BROKER_DATA_DIR": "/proc/nowhere"}, "BROKER_DATA_DIR"),
        ({"BROKER_SANDBOX_MOOD": "grumpy"}, "BROKER_SANDBOX_MOOD"),
        ({"WEBHOOK_BASE_URL": "https://example.com/?a=b"}, "WEBHOOK_BASE_URL"),
    ],
)
def test_wrong_variable_stops_the_start_and_is_named(shell: Shell, settings: dict[str, str], named: str) -> None:
    ended = shell.run("serve", **settings)
    assert (ended.code, ended.out) == (2, "")
    assert named in ended.err
    assert "Traceback" not in ended.err
    assert "too-short" not in ended.err


def test_port_in_use_is_reported_with_its_cure(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = shell.run("serve", "--port", str(taken.getsockname()[1]))
    assert ended.code == 2
    assert "--port" in ended.err
    assert "Traceback" not in ended.err


def test_worker_without_a_provider_key_is_an_error(shell: Shell) -> None:
    ended = shell.run("worker")
    assert ended.code == 2
    assert "no provider key is set" in ended.err
    assert "broker serve" in ended.err


@pytest.mark.anyio
async def test_parts_of_a_postgres_are_shown_as_one_address(shell: Shell, postgres: Postgres) -> None:
    """The database belongs to the service that the operator moves from: it is named, refused, and left as it is."""
    url = await postgres.fresh()
    name = url.rpartition("/")[2]
    await postgres.execute("CREATE TABLE users (username TEXT)", name)
    parts = {"HOST": "127.0.0.1", "PORT": str(postgres.port), "DB": name, "USER": "postgres", "PASSWORD": "hunter2:/@"}
    ended = await anyio.to_thread.run_sync(
        lambda: shell.run("serve", "--port", "0", **{f"POSTGRES_{part}": value for part, value in parts.items()})
    )
    assert (ended.code, ended.out) == (2, "")
    assert f"Database: {url.replace('postgres@', '')}, built from POSTGRES_HOST" in ended.err
    assert "another program (users)" in ended.err
    assert "hunter2" not in ended.err


def test_key_under_another_name_is_answered_by_the_start(shell: Shell) -> None:
    ended = shell.run("worker", FAL_API_KEY="hunter2")
    assert "FAL_API_KEY is not read: set FAL_KEY instead" in ended.err
    assert "hunter2" not in ended.err
    report = json.loads(shell.run("doctor", "--json", FAL_API_KEY="hunter2").out)["checks"]
    found = next(one for one in report if one["name"] == "settings" and one["status"] == "warning")
    assert (found["found"], found["cure"]) == ("FAL_API_KEY is not read", "set FAL_KEY instead")


def test_control_characters_are_replaced() -> None:
    assert strip_controls("a fox\x1b]0;owned\x07\x1b[2J\r\nnext") == "a fox ]0;owned  [2J \nnext"


def test_deployment_warnings() -> None:
    python, local = (3, 11, 10), load_settings(env_file=None, host="127.0.0.1", api_keys=(), webhook_base_url="")
    assert list(deployment_warnings(local, python)) == []
    assert ["CVE" in warning for warning in deployment_warnings(local, (3, 11, 7))] == [True]
    assert ["CVE" in warning for warning in deployment_warnings(local, (3, 12, 5))] == [True]
    exposed = local.model_copy(update={"host": "0.0.0.0"})
    assert ["BROKER_API_KEYS" in warning for warning in deployment_warnings(exposed, python)] == [True]
    anonymous = exposed.model_copy(update={"allow_anonymous": True})
    assert ["BROKER_ALLOW_ANONYMOUS" in warning for warning in deployment_warnings(anonymous, python)] == [True]
    seeing = local.model_copy(update={"admin_sees_content": True})
    assert ["BROKER_ADMIN_SEES_CONTENT" in warning for warning in deployment_warnings(seeing, python)] == [True]
    for private in ["http://localhost:8000", "http://127.0.0.1:8000", "https://192.168.1.2", "http://broker:8000"]:
        unreachable = local.model_copy(update={"webhook_base_url": private})
        assert ["WEBHOOK_BASE_URL" in warning for warning in deployment_warnings(unreachable, python)] == [True]
    public = local.model_copy(update={"webhook_base_url": "https://broker.example.com"})
    assert list(deployment_warnings(public, python)) == []


# -- demo


def test_demo_makes_two_images_and_closes_everything(shell: Shell) -> None:
    """It ignores the environment and .env, and so never spends money."""
    (shell.folder / ".env").write_text("BROKER_PORT=nonsense\n")
    began = time.monotonic()
    ended = shell.run("demo", NANO_BANANA_API_KEY="a-real-key", NANO_BANANA_API_URL="http://127.0.0.1:9")
    assert ended.code == 0, ended.err
    assert time.monotonic() - began < 20
    assert ended.out.count("callback received and accepted") == 2
    for mode in ("text-to-image", "image-to-image"):
        path = shell.folder / "data" / "demo" / f"{mode}.png"
        assert str(path) in ended.out
        with Image.open(path) as image:
            assert (image.format, image.size) == ("PNG", (1344, 768))
    addresses = re.findall(r"http://127\.0\.0\.1:\d+", ended.out)
    assert len(addresses) == 2
    assert not any(accepts_connections(address) for address in addresses)
    assert sorted(path.name for path in shell.folder.iterdir()) == [".env", "data"]


# -- serve


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops_on_a_signal(shell: Shell, number: signal.Signals) -> None:
    with serving(shell, "serve") as (process, address):
        assert accepts_connections(address)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "webhook at" in out
    assert "PRETEND PICTURES" in err
    assert not accepts_connections(address)


def test_sandbox_stops_on_a_signal(shell: Shell) -> None:
    with serving(shell, "sandbox", "--port", "0", "--mood", "late:30") as (process, address):
        assert accepts_connections(address)
        process.terminate()
        out, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert f"BROKER_DOWNLOAD_ALLOW={address.removeprefix('http://')}" in out


def test_worker_stops_on_a_signal(shell: Shell) -> None:
    settings = {
        "NANO_BANANA_API_KEY": "k",
        "NANO_BANANA_API_URL": "http://127.0.0.1:9",
        "BROKER_TUNNEL_API": "http://127.0.0.1:9",
    }
    process = shell.start("worker", **settings)
    try:
        assert process.stdout is not None
        assert "Worker for kie" in process.stdout.readline()
        assert "polling" in process.stdout.readline()
        process.terminate()
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, err


# -- generate


def test_generate_saves_the_images(served: Shell) -> None:
    first = served.run("generate", "a red fox", "--aspect", "16:9", "-o", "fox.png")
    assert (first.code, first.out.split()) == (0, ["fox.png"]), first.err
    with Image.open(served.folder / "fox.png") as image:
        assert image.size == (1344, 768)
    second = served.run("generate", "at night", "-i", "fox.png", "-o", "night.png", "--n", "2")
    assert (second.code, second.out.split()) == (0, ["night-1.png", "night-2.png"]), second.err
    assert (served.folder / "night-2.png").stat().st_size > 1000


def test_generate_reports_a_failed_task(served: Shell) -> None:
    ended = served.run("generate", f"a fox {REFUSED}")
    assert (ended.code, ended.out) == (1, "")
    assert "code safety_input, billed: no" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("-i", "missing.png"), "missing.png: No such file"),
        (("-o", "nowhere/fox.png"), "no folder nowhere"),
        (("--aspect", "5:77"), "Accepted: 1:1"),
        (("--priority", "urgent"), "priority"),
    ],
)
def test_generate_reports_a_wrong_option(served: Shell, args: tuple[str, ...], words: str) -> None:
    ended = served.run("generate", "a fox", *args)
    assert (ended.code, ended.out) == (1, "")
    assert words in ended.err


def test_dry_run_shows_price_routes_and_request_and_orders_nothing(served: Shell) -> None:
    before = json.loads(served.run("tasks", "--json").out)
    ended = served.run("generate", "a dry fox", "--dry-run", "--provider", "sandbox", "--n", "2")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("price      8 credits (0.04 USD), exact\nsandbox    candidate\nPOST http://127.0.0.1:")
    assert '"prompt": "a dry fox"' in ended.out
    assert json.loads(served.run("tasks", "--json").out) == before
    assert "No provider" in served.run("generate", "a fox", "--dry-run", "--provider", "fal").err


def test_command_talks_to_the_broker_at_a_url_and_to_no_other(served: Shell, shell: Shell) -> None:
    url = f"http://127.0.0.1:{served.settings['BROKER_PORT']}"
    assert shell.run("generate", "a fox", "--dry-run", BROKER_URL=url, BROKER_KEY=KEY).code == 0
    assert "BROKER_API_KEYS" in shell.run("tasks", BROKER_URL=url, BROKER_API_KEYS=KEY).err
    for command in (("generate", "a fox"), ("tasks",)):
        ended = served.run(*command, BROKER_URL="http://127.0.0.1:9")
        assert (ended.code, ended.out) == (1, "")
        assert "check BROKER_URL" in ended.err


def test_generate_needs_the_key_of_the_broker(served: Shell) -> None:
    ended = served.run("generate", "a fox", BROKER_API_KEYS="another-key")
    assert ended.code == 1
    assert "BROKER_API_KEYS" in ended.err
    assert "another-key" not in ended.err


def test_generate_runs_a_broker_of_its_own(shell: Shell) -> None:
    """With the sandbox it leaves no file but the image."""
    ended = shell.run("generate", "a red fox", "-o", "fox.png")
    assert (ended.code, ended.out.split()) == (0, ["fox.png"]), ended.err
    assert "PRETEND PICTURE" in ended.err
    assert [path.name for path in shell.folder.iterdir()] == ["fox.png"]


def test_interrupted_generate_leaves_the_task_running(served: Shell) -> None:
    process = served.start("generate", "a fox [mood:slow:600]")
    try:
        assert process.stderr is not None
        task_id = process.stderr.readline().split()[-1]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert served.run("cancel", task_id).code == 0


# -- tasks


def test_tasks_are_shown_as_text_and_as_json(served: Shell) -> None:
    served.run("generate", f"a blue fox {REFUSED}")
    listed = json.loads(served.run("tasks", "--status", "failed", "--limit", "1", "--json").out)
    (task,) = listed["data"]
    assert task["prompt"] == f"a blue fox {REFUSED}"
    shown = json.loads(served.run("task", task["id"], "--json").out)
    assert shown["data"] == task
    assert task["id"] in served.run("tasks").out
    watched = served.run("task", task["id"], "--watch")
    assert watched.code == 1
    assert "a blue fox" in watched.out
    assert "safety_input" in watched.err


def test_attempts_of_a_task_are_shown(served: Shell) -> None:
    served.run("generate", f"a green fox {REFUSED}")
    (task,) = json.loads(served.run("tasks", "--status", "failed", "--limit", "1", "--json").out)["data"]
    lines = served.run("task", task["id"], "--attempts").out.splitlines()
    assert lines[0] == "sandbox    candidate"
    assert re.fullmatch(r"1  \S+Z  sandbox  key none  (failed|refused)  safety_input  billed: \w+", lines[1])
    (attempt,) = json.loads(served.run("task", task["id"], "--attempts", "--json").out)["data"]["attempts"]
    assert (attempt["provider"], attempt["code"]) == ("sandbox", "safety_input")


def test_providers_are_listed_paused_and_resumed(served: Shell) -> None:
    listed = served.run("providers")
    assert listed.code == 0, listed.err
    assert re.match(r"sandbox at http://127\.0\.0\.1:\d+ takes orders\n  models +nano-banana, ", listed.out)
    assert re.search(r"key        none  takes orders  in flight 0/100  submitted \d/20 in 10 s", listed.out)
    assert "takes no orders: paused" in served.run("providers", "pause", "sandbox").out
    (provider,) = json.loads(served.run("providers", "--json").out)["data"]
    assert (provider["paused"], provider["available"]) == (True, False)
    assert "sandbox at" in served.run("providers", "resume", "sandbox").out
    assert json.loads(served.run("providers", "resume", "sandbox", "--json").out)["data"]["available"] is True
    unknown = served.run("providers", "pause", "fal")
    assert unknown.code == 1
    assert "In use: sandbox" in unknown.err


def test_provider_is_paused_in_the_database(shell: Shell) -> None:
    _store_tasks(shell, _task_row(1))
    assert "paused" in shell.run("providers", "pause", "sandbox").out
    assert json.loads(shell.run("providers", "--json").out)["data"][0]["paused"] is True


def test_cancel_reports_the_reason_of_a_failure(served: Shell) -> None:
    unknown = served.run("cancel", "task_" + "0" * 43)
    assert unknown.code == 1
    assert "no task" in unknown.err
    assert served.run("generate", "a fox", "-o", "done.png").code == 0
    done = json.loads(served.run("tasks", "--status", "completed", "--limit", "1", "--json").out)["data"][0]["id"]
    late = served.run("cancel", done)
    assert late.code == 1
    assert "completed" in late.err


def test_folder_without_a_database_is_an_error(shell: Shell) -> None:
    ended = shell.run("tasks")
    assert ended.code == 1
    assert "right folder" in ended.err
    assert list(shell.folder.iterdir()) == []


def _task_row(number: int, **changes: object) -> Task:
    task = {
        "id": f"task_{number:043x}",
        "batch": f"batch_{number:043x}",
        "caller": "house:local",
        "due_at": 0.0,
        "provider": "sandbox",
        "model": "nano-banana",
        "mode": "text-to-image",
        "prompt": "a fox",
        "deadline_at": OLD + 9e9,
        "created_at": OLD,
        "updated_at": OLD,
        "entered_at": OLD,
    }
    return Task(**{**task, **changes})  # type: ignore[arg-type]


def _store_tasks(shell: Shell, *rows: Task) -> None:
    async def store() -> None:
        async with SqliteDatabase(shell.folder / "data" / "broker.db") as database:
            await upgrade_schema(database, OLD)
            await database.transact(*(Tasks(database).insert_task(row) for row in rows))

    anyio.run(store)


def _count_states(shell: Shell) -> dict[str, int]:
    async def read() -> dict[str, int]:
        async with SqliteDatabase(shell.folder / "data" / "broker.db") as database:
            return await Tasks(database).count_by_state()

    return anyio.run(read)


def test_tasks_are_read_and_canceled_in_the_database(shell: Shell) -> None:
    _store_tasks(shell, _task_row(1))
    listed = json.loads(shell.run("tasks", "--json").out)
    assert [task["status"] for task in listed["data"]] == ["pending"]
    task_id = listed["data"][0]["id"]
    assert "pending (queued, place 1)" in shell.run("task", task_id).out
    assert shell.run("cancel", task_id).code == 0
    assert json.loads(shell.run("task", task_id, "--json").out)["data"]["status"] == "canceled"


# -- maintenance


def test_cleanup_deletes_expired_tasks_and_submits_nothing(shell: Shell) -> None:
    ended = {"state": TaskState.FAILED, "ended_at": OLD, "due_at": OLD}
    _store_tasks(shell, _task_row(1), _task_row(2, **ended), _task_row(3, **ended))
    cleaned = shell.run("cleanup", NANO_BANANA_API_KEY="k", NANO_BANANA_API_URL="http://127.0.0.1:9")
    assert cleaned.code == 0, cleaned.err
    assert cleaned.out.startswith("2 tasks")
    assert _count_states(shell)["queued"] == 1
    assert "failed" not in _count_states(shell)


def test_cleanup_deletes_with_less_space_than_images_need(shell: Shell) -> None:
    with small_disk(shell.folder / "data", 32) as disk:
        _store_tasks(shell, _task_row(1, state=TaskState.FAILED, ended_at=OLD, due_at=OLD))
        disk.fill()
        variables = {"NANO_BANANA_API_KEY": "k", "NANO_BANANA_API_URL": "http://127.0.0.1:9", "SECRET_KEY": "x" * 32}
        cleaned = shell.run("cleanup", **variables)
        assert cleaned.code == 0, cleaned.err
        assert "failed" not in _count_states(shell)


def test_the_database_is_upgraded_and_described(shell: Shell) -> None:
    assert shell.run("db", "status").code == 1
    assert not (shell.folder / "data").exists()
    upgraded = shell.run("db", "upgrade")
    assert upgraded.code == 0
    assert "ran 0001_initial" in upgraded.out
    _store_tasks(shell, _task_row(1))
    described = shell.run("db", "status")
    assert described.code == 0
    assert re.search(r"^tasks queued +1$", described.out, re.MULTILINE)
    assert "SQLite" in described.out


def test_webhook_secret_is_printed(shell: Shell) -> None:
    """The derived secret is the one that the serving process signs with."""
    derived = shell.run("webhooks", "secret", SECRET_KEY="a-secret-of-the-tests")
    assert (derived.code, derived.out) == (0, write_secret(derived_key(b"a-secret-of-the-tests")) + "\n")
    two = [write_secret(byte * 32) for byte in (b"n", b"o")]
    chosen = shell.run("webhooks", "secret", BROKER_WEBHOOK_SECRETS=", ".join(two))
    assert chosen.out.split() == two


def test_webhook_secret_is_not_created_by_printing(shell: Shell) -> None:
    """In the wrong folder it would be a secret that signs nothing."""
    ended = shell.run("webhooks", "secret")
    assert (ended.code, ended.out) == (1, "")
    assert "start the broker once" in ended.err
    assert not list(shell.folder.rglob("secret.key"))


def test_database_of_a_newer_broker_is_not_opened(shell: Shell) -> None:
    async def add_unknown_migration() -> None:
        async with SqliteDatabase(shell.folder / "data" / "broker.db") as database:
            await upgrade_schema(database, OLD)
            await database.execute("INSERT INTO migrations VALUES (9999, 'later', 0)")

    anyio.run(add_unknown_migration)
    for command in (["serve"], ["tasks"]):
        ended = shell.run(*command)
        assert ended.code == 2
        assert "newer" in ended.err
        assert "Traceback" not in ended.err
