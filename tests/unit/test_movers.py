"""The `.env` of each system that the broker replaces: every name works, or the start says what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from broker.bootstrap import load_settings
from broker.providers.gemini.settings import GeminiSettings
from broker.providers.kie.settings import KieSettings
from broker.providers.replicate.settings import ReplicateSettings
from broker.settings import Settings
from tests.support.variables import settings_variables

PASSWORD: Final = "p@ss:w/o?r#d%20 é"


@dataclass(frozen=True)
class Works:
    """A name that is read: what it does."""

    effect: Callable[[Settings], object]
    expected: object


@dataclass(frozen=True)
class Answered:
    """A name that is not read: the line at the start."""

    sentence: str


def gemini_key(settings: Settings) -> object:
    return [key.get_secret_value() for key in settings.package(GeminiSettings).gemini_keys]


def kie_key(settings: Settings) -> object:
    return [key.get_secret_value() for key in settings.package(KieSettings).kie_keys]


def bucket_part(name: str) -> Callable[[Settings], object]:
    return lambda settings: getattr(settings.bucket, name)


def setting(name: str) -> Callable[[Settings], object]:
    return lambda settings: getattr(settings, name)


DATABASE: Final = "postgresql://banana:p%40ss%3Aw%2Fo%3Fr%23d%2520%20%C3%A9@db.example.com:5433/pictures"

SYSTEMS: Final[Mapping[str, Mapping[str, tuple[str, Works | Answered]]]] = {
    "S0": {
        "GOOGLE_API_KEY": ("key-of-google", Works(gemini_key, ["key-of-google"])),
        "DATABASE_URL": ("sqlite:///app.db", Works(setting("database"), "sqlite:///app.db")),
    },
    "S0, the other name": {"GEMINI_API_KEY": ("key-of-gemini", Works(gemini_key, ["key-of-gemini"]))},
    "S1": {
        "GEMINI_API_KEY": ("key-of-gemini", Works(gemini_key, ["key-of-gemini"])),
        "REQUEST_TIMEOUT_SECONDS": ("110", Works(setting("request_timeout"), 110.0)),
        "MAX_CONNECTIONS": ("90", Works(setting("max_connections"), 90)),
        "RATE_LIMIT_PER_MINUTE": ("50", Works(setting("rate_per_minute"), 50)),
        "WORKERS": ("4", Works(setting("workers"), 4)),
    },
    "S2": {
        "NANO_BANANA_API_URL": (
            "https://api.kie.ai/nano-banana",
            Works(lambda settings: settings.package(KieSettings).api_url, "https://api.kie.ai/nano-banana"),
        ),
        "NANO_BANANA_API_KEY": ("key-of-kie", Works(kie_key, ["key-of-kie"])),
        "WEBHOOK_BASE_URL": (
            "https://banana.example.com",
            Works(setting("webhook_base_url"), "https://banana.example.com"),
        ),
        "NEXT_PUBLIC_MAX_FILE_SIZE": ("5000000", Works(setting("max_file_size"), 5_000_000)),
    },
    "S2, the later names": {"KIE_API_KEY": ("key-of-kie", Works(kie_key, ["key-of-kie"]))},
    "S3": {
        "GEMINI_API_KEY": ("key-of-a-relay", Works(gemini_key, ["key-of-a-relay"])),
        "GEMINI_BASE_URL": (
            "https://relay.example.com",
            Works(lambda settings: settings.package(GeminiSettings).gemini_url, "https://relay.example.com"),
        ),
        "GEMINI_AUTH": ("query", Works(lambda settings: settings.package(GeminiSettings).gemini_auth, "query")),
    },
    "S4": {
        "POSTGRES_HOST": ("db.example.com", Works(setting("database"), DATABASE)),
        "POSTGRES_PORT": ("5433", Works(setting("database_shown"), "postgresql://db.example.com:5433/pictures")),
        "POSTGRES_DB": ("pictures", Works(setting("database_shown"), "postgresql://db.example.com:5433/pictures")),
        "POSTGRES_USER": ("banana", Works(setting("database"), DATABASE)),
        "POSTGRES_PASSWORD": (PASSWORD, Works(setting("database"), DATABASE)),
        "MINIO_ENDPOINT": (
            "objects.example.com:9000",
            Works(bucket_part("endpoint"), "https://objects.example.com:9000"),
        ),
        "MINIO_ACCESS_KEY": ("key-of-minio", Works(bucket_part("access_key"), "key-of-minio")),
        "MINIO_SECRET_KEY": ("secret-of-minio", Works(bucket_part("secret_key"), "secret-of-minio")),
        "MINIO_BUCKET": ("nano-banana-images", Works(bucket_part("name"), "nano-banana-images")),
        "MINIO_USE_SSL": ("true", Works(bucket_part("endpoint"), "https://objects.example.com:9000")),
        "MINIO_PUBLIC_URL": (
            "https://pictures.example.com",
            Answered("set BROKER_BLOB_LINKS=public to redirect callers to it"),
        ),
        "SECRET_KEY": ("s" * 32, Works(lambda settings: settings.secret_values() >= {"s" * 32}, True)),
        "ALGORITHM": (
            "HS256",
            Answered("tokens are random and kept in the database, so there is no algorithm to choose; remove it"),
        ),
        "PWD_SCHEMES": (
            "bcrypt",
            Answered("passwords are always stored as argon2id, so there is no scheme to choose; remove it"),
        ),
        "ACCESS_TOKEN_EXPIRE_MINUTES": ("90", Works(setting("access_token_minutes"), 90.0)),
        "REFRESH_TOKEN_EXPIRE_DAYS": ("3", Works(setting("refresh_token_days"), 3.0)),
        "REPLICATE_API_TOKEN": (
            "token-of-replicate",
            Works(lambda settings: settings.secret_values() >= {"token-of-replicate"}, True),
        ),
        "MAX_WORKERS": ("3", Works(setting("max_concurrent"), 3)),
    },
    "S4, the other name": {"MAX_CONCURRENT_GENERATIONS": ("3", Works(setting("max_concurrent"), 3))},
}


@pytest.fixture(autouse=True)
def only_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in settings_variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_name_of_a_system_works_or_is_answered(system: str) -> None:
    names = SYSTEMS[system]
    Path(".env").write_text("".join(f"{name}='{value}'\n" for name, (value, _) in names.items()))
    settings = load_settings()
    works = {name: fate for name, (_, fate) in names.items() if isinstance(fate, Works)}
    answered = {name: fate for name, (_, fate) in names.items() if isinstance(fate, Answered)}
    assert {name: fate.effect(settings) for name, fate in works.items()} == {
        name: fate.expected for name, fate in works.items()
    }
    said = dict(sentence.split(" is not ", 1) for sentence in settings.unread_variables)
    assert {name: text.partition(": ")[2] for name, text in said.items()} == {
        name: fate.sentence for name, fate in answered.items()
    }
    shown = f"{settings!r}{settings.unread_variables}{settings.database_shown}"
    secrets = [value for name, (value, _) in names.items() if name.endswith(("_KEY", "_PASSWORD", "_API_TOKEN"))]
    assert [value for value in secrets if value in shown] == []
    assert settings.package(ReplicateSettings).is_configured is ("REPLICATE_API_TOKEN" in names)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"POSTGRES_HOST": "db"}, "postgresql://postgres@db:5432/nano_banana"),
        ({"POSTGRES_HOST": "::1", "POSTGRES_USER": "a@b"}, "postgresql://a%40b@[::1]:5432/nano_banana"),
        (
            {"POSTGRES_HOST": "/run/pg sql", "POSTGRES_PASSWORD": "a&b"},
            None,
        ),
        (
            {"POSTGRES_HOST": "/run/postgresql", "POSTGRES_PASSWORD": "a&b"},
            "postgresql://postgres:a%26b@/nano_banana?host=%2Frun%2Fpostgresql&port=5432",
        ),
        ({"POSTGRES_HOST": "db", "DATABASE_URL": "sqlite:///other.db"}, "sqlite:///other.db"),
        ({"POSTGRES_PASSWORD": "hunter2"}, "sqlite:///data/broker.db"),
        ({"DATABASE_URL": "sqlite+aiosqlite:///own.db"}, "sqlite:///own.db"),
        ({"DATABASE_URL": "postgresql+psycopg2://u:a%2B@db/x"}, "postgresql://u:a%2B@db/x"),
    ],
)
def test_addresses_of_databases_are_understood(variables: dict[str, str], expected: str | None) -> None:
    Path(".env").write_text("".join(f"{name}='{value}'\n" for name, value in variables.items()))
    if expected is None:
        with pytest.raises(Exception, match="POSTGRES_HOST is wrong"):
            load_settings()
        return
    settings = load_settings()
    assert settings.database == expected
    assert settings.is_database_built is ("POSTGRES_HOST" in variables and "DATABASE_URL" not in variables)


def test_folder_of_a_trial_is_beside_the_named_places() -> None:
    Path(".env").write_text("POSTGRES_HOST=db\nMINIO_ENDPOINT=h:1\nMINIO_BUCKET=pictures\n")
    settings = load_settings()
    assert (settings.shared, settings.bucket is not None) == (True, True)
    trial = settings.with_folder(Path("trial"))
    assert (trial.database, trial.bucket, trial.blob_folder) == ("sqlite:///trial/broker.db", None, Path("trial/blobs"))


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ("POSTGRES_PASSWORD=hunter2\nPOSTGRES_DB=x", "POSTGRES_DB, POSTGRES_PASSWORD are not used: set POSTGRES_HOST"),
        ("POSTGRES_HOST=db\nDATABASE_URL=postgresql://u:hunter2@db/x", "POSTGRES_HOST is not used: DATABASE_URL names"),
        ("MINIO_BUCKET=pictures", "MINIO_BUCKET is not used: images are kept in data/blobs; set MINIO_ENDPOINT"),
        (
            "MINIO_ENDPOINT=h:1\nMINIO_BUCKET=pictures\nBROKER_BLOB_URL=file:here",
            "MINIO_ENDPOINT, MINIO_BUCKET are not used: images are kept in here; set",
        ),
    ],
)
def test_name_without_effect_is_answered(variables: str, sentence: str) -> None:
    Path(".env").write_text(variables)
    (answer,) = load_settings().unread_variables
    assert answer.startswith(sentence)
    assert "hunter2" not in answer


def test_files_of_next_and_streamlit_are_answered() -> None:
    Path(".streamlit").mkdir()
    Path(".streamlit/secrets.toml").write_text(
        'GOOGLE_API_KEY = "hunter2"\nFAL_KEY = ""\n[db]\nSECRET_KEY = "hunter2"\n'
    )
    Path(".env.local").write_text("NANO_BANANA_API_KEY=hunter2\nKIE_KEY=hunter2\nNODE_ENV=x\nBROKER_PORT=8001\n")
    assert load_settings().unread_variables == (
        "BROKER_PORT, KIE_KEY, NANO_BANANA_API_KEY in .env.local are not read: copy to .env",
        "GOOGLE_API_KEY in .streamlit/secrets.toml is not read: copy to .env",
    )
    Path(".env").write_text("GOOGLE_API_KEY=x\nNANO_BANANA_API_KEY=x\nKIE_API_KEY=x\nBROKER_PORT=8002\n")
    assert load_settings().unread_variables == ("KIE_KEY in .env.local is not read: copy to .env",)
    Path(".env.local").write_bytes(b"\xff")
    Path(".streamlit/secrets.toml").write_bytes(b"\xff")
    assert load_settings().unread_variables == ()
