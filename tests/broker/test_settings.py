"""A wrong value stops the start with name, shape and cure; a secret never shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import SettingsError
from broker.settings import load


@pytest.fixture(autouse=True)
def no_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("BROKER_PORT", "eighty", "integer"),
        ("BROKER_PORT", "70000", "65535"),
        ("BROKER_RETENTION_HOURS", "0", "greater than 0"),
        ("NANO_BANANA_API_URL", "api.kie.ai", "https://api.kie.ai"),
        ("NANO_BANANA_API_URL", "https://user:hunter2@api.kie.ai", "without user name"),
        ("WEBHOOK_BASE_URL", "ftp://x", "https://"),
        ("BROKER_ALLOW_ANONYMOUS", "perhaps", "boolean"),
        ("BROKER_CORS_ORIGINS", "*", "exact origins"),
        ("DATABASE_URL", "mysql://x", "sqlite:///"),
        ("BROKER_BLOB_URL", "ftp://x", "file:"),
        ("SECRET_KEY", "hunter2", "at least 16"),
        ("LOG_LEVEL", "LOUD", "DEBUG"),
        ("NANO_BANANA_API_KEY", "hunter2 ключ", "visible ASCII"),
        ("BROKER_API_KEYS", "hunter2 b", "without blanks"),
        ("BROKER_DOWNLOAD_ALLOW", "http://x", "without http"),
        ("BROKER_LOG_FORMAT", "xml", "json"),
        ("MAX_FILE_SIZE", "-1", "greater than 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, cure: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as told:
        load()
    message = str(told.value)
    assert message.startswith(name)
    assert cure in message
    assert "hunter2" not in message


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PORT", "x")
    monkeypatch.setenv("LOG_LEVEL", "x")
    with pytest.raises(SettingsError, match=r"(?s)BROKER_PORT.*LOG_LEVEL|LOG_LEVEL.*BROKER_PORT"):
        load()


def test_both_names_of_a_variable_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "from-the-other-name")
    monkeypatch.setenv("MAX_WORKERS", "3")
    settings = load()
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "from-the-other-name"
    assert settings.max_concurrent == 3
    assert not settings.sandboxed


def test_a_dotenv_file_is_read_and_an_empty_value_means_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BROKER_PORT=8123\nNANO_BANANA_API_KEY=\nBROKER_API_KEYS=one, two\n")
    settings = load()
    assert (settings.port, settings.sandboxed) == (8123, True)
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_a_dotenv_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\0garbage")
    with pytest.raises(SettingsError, match="UTF-8"):
        load()


def test_secrets_do_not_show_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NANO_BANANA_API_KEY", "NANO_BANANA_WEBHOOK_KEY", "SECRET_KEY", "BROKER_API_KEYS"):
        monkeypatch.setenv(name, "canary-canary-canary")
    settings = load()
    assert "canary" not in repr(settings)
    assert "canary" not in str(settings.model_dump())


def test_the_defaults_live_in_the_data_folder() -> None:
    settings = load()
    assert settings.database == "sqlite:///data/broker.db"
    assert settings.blobs == Path("data/blobs")
