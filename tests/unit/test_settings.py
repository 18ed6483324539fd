"""Settings: a wrong value stops the start with name, shape and cure, and no secret is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.bootstrap import load_settings
from broker.errors import SettingsError
from broker.providers.kie.settings import KieSettings


@pytest.fixture(autouse=True)
def no_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("BROKER_PORT", "eighty", "use a whole number"),
        ("BROKER_PORT", "70000", "not greater than 65535"),
        ("BROKER_RETENTION_HOURS", "0", "greater than 0"),
        ("NANO_BANANA_API_URL", "api.kie.ai", "https://api."),
        ("NANO_BANANA_API_URL", "https://user:hunter2@api.kie.ai", "without user name"),
        ("WEBHOOK_BASE_URL", "ftp://x", "https://broker.example.com"),
        ("WEBHOOK_BASE_URL", "https://user:hunter2@x", "without user name"),
        ("BROKER_ALLOW_ANONYMOUS", "perhaps", "use true or false"),
        ("BROKER_CORS_ORIGINS", "*", "exact origins"),
        ("DATABASE_URL", "mysql://x", "sqlite:///"),
        ("DATABASE_URL", "mysql://user:hunter2@x", "postgresql://"),
        ("POSTGRES_HOST", "postgresql://u:hunter2@db", "alone"),
        ("POSTGRES_PORT", "0", "not less than 1"),
        ("BROKER_DATABASE_LISTEN_URL", "sqlite:///hunter2", "Postgres itself"),
        ("BROKER_DATABASE_CONNECTIONS", "1", "not less than 2"),
        ("BROKER_BLOB_URL", "ftp://x", "file:"),
        ("BROKER_BLOB_URL", "s3://Big_Bucket", "s3://bucket/prefix"),
        ("BROKER_BLOB_URL", "s3://bucket/a//b", "s3://bucket/prefix"),
        ("BROKER_BLOB_URL", "s3://bucket/a/../b", "s3://bucket/prefix"),
        ("MINIO_BUCKET", "a/b", "letters, digits"),
        ("BROKER_BLOB_LINKS", "sometimes", "use 'none', 'presigned' or 'public'"),
        ("BROKER_POLL_SECONDS", "often", "use a number"),
        ("AWS_ENDPOINT_URL", "ftp://x", "https://"),
        ("SECRET_KEY", "hunter2", "at least 16"),
        ("LOG_LEVEL", "LOUD", "DEBUG"),
        ("NANO_BANANA_API_KEY", "hunter2 ключ", "visible ASCII"),
        ("BROKER_API_KEYS", "hunter2 b", "without blanks"),
        ("BROKER_DOWNLOAD_ALLOW", "http://x", "without http"),
        ("BROKER_CALLBACK_ALLOW", "http://x", "without http"),
        ("BROKER_WEBHOOK_SECRETS", "my-own-word", "openssl rand"),
        ("BROKER_WEBHOOK_SECRETS", "whsec_" + "A" * 32 + ",whsec_QUJD", "24 to 64"),
        ("BROKER_LOG_FORMAT", "xml", "json"),
        ("MAX_FILE_SIZE", "-1", "greater than 0"),
        ("BROKER_DAILY_BUDGET", "0", "greater than 0"),
        ("BROKER_DAILY_BUDGET", "5 USD", "use a number"),
        ("BROKER_DAILY_BUDGET", "inf", "finite number"),
    ],
)
def test_wrong_value_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, name: str, value: str, cure: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(name)
    assert cure in message
    assert "hunter2" not in message


def test_all_wrong_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PORT", "x")
    monkeypatch.setenv("LOG_LEVEL", "x")
    with pytest.raises(SettingsError, match=r"(?s)BROKER_PORT.*LOG_LEVEL|LOG_LEVEL.*BROKER_PORT"):
        load_settings()


OTHER_NAMES = {
    "FAL_API_KEY": "FAL_KEY",
    "FAL_KEY_ID": "FAL_KEY",
    "GOOGLE_GENAI_API_KEY": "GEMINI_API_KEY",
    "GOOGLE_GEMINI_API_KEY": "GEMINI_API_KEY",
    "GOOGLE_GENERATIVE_AI_API_KEY": "GEMINI_API_KEY",
    "GOOGLE_AI_STUDIO_KEY": "GEMINI_API_KEY",
    "GEMINI_KEY": "GEMINI_API_KEY",
    "NEXT_PUBLIC_GEMINI_API_KEY": "GEMINI_API_KEY",
    "GOOGLE_GEMINI_BASE_URL": "GEMINI_BASE_URL",
    "REPLICATE_API_KEY": "REPLICATE_API_TOKEN",
    "REPLICATE_TOKEN": "REPLICATE_API_TOKEN",
    "OPENROUTER_KEY": "OPENROUTER_API_KEY",
    "OPEN_ROUTER_API_KEY": "OPENROUTER_API_KEY",
    "WAVESPEED_KEY": "WAVESPEED_API_KEY",
    "GEMINI_API_KEYS": "GEMINI_API_KEY",
    "FAL_KEYS": "FAL_KEY",
    "KIE_API_KEYS": "NANO_BANANA_API_KEY",
    "REPLICATE_API_TOKENS": "REPLICATE_API_TOKEN",
    "WAVESPEED_AI_API_KEY": "WAVESPEED_API_KEY",
    "NANOBANANA_API_KEY": "NANOBANANAAPI_KEY",
    "NANOBANANAAPI_API_KEY": "NANOBANANAAPI_KEY",
    "KIE_KEY": "NANO_BANANA_API_KEY",
    "KIEAI_API_KEY": "NANO_BANANA_API_KEY",
    "KIE_BASE_URL": "NANO_BANANA_API_URL",
    "KIE_WEBHOOK_SECRET": "NANO_BANANA_WEBHOOK_KEY",
    "NEXT_PUBLIC_BASE_URL": "WEBHOOK_BASE_URL",
    "BROKER_PROVIDER": "BROKER_PROVIDERS",
}


@pytest.mark.parametrize("place", ["environment", "file"])
@pytest.mark.parametrize(("name", "instead"), OTHER_NAMES.items())
def test_variable_under_another_name_is_answered(
    monkeypatch: pytest.MonkeyPatch, name: str, instead: str, place: str
) -> None:
    if place == "file":
        Path(".env").write_text(f"{name}=hunter2\n")
    else:
        monkeypatch.setenv(name, "hunter2")
    (sentence,) = load_settings().unread_variables
    assert sentence.startswith(f"{name} is not read: set {instead}")
    assert "hunter2" not in sentence


def test_variable_whose_replacement_is_set_needs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "hunter2")  # compose gives it to Postgres
    monkeypatch.setenv("FAL_API_KEY", "hunter2")
    Path(".env").write_text("DATABASE_URL=postgresql://u:hunter2@db/broker\nFAL_KEY=hunter2\n")
    assert load_settings().unread_variables == ()


@pytest.mark.parametrize("name", ["PATH", "AWS_PROFILE", "OPENAI_API_KEY", "FALCON_KEY", "MY_GEMINI", "FAL_API_KEY"])
def test_other_variables_need_no_answer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Neither those of other programs, nor those that are empty."""
    monkeypatch.setenv(name, "" if name == "FAL_API_KEY" else "x")
    assert load_settings().unread_variables == ()


def test_misspelt_variable_of_the_broker_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_RETENTION", "3")
    monkeypatch.setenv("BROKER_XYZZY_QUUX", "3")
    near, far = load_settings().unread_variables
    assert near == "BROKER_RETENTION is not read: set BROKER_RETENTION_HOURS instead"
    assert far == "BROKER_XYZZY_QUUX is not read: see .env.example for the names that are"


def test_every_alias_of_a_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIE_API_KEY", "from-the-other-name")
    monkeypatch.setenv("MAX_WORKERS", "3")
    settings = load_settings()
    upstream = settings.package(KieSettings)
    assert [key.get_secret_value() for key in upstream.kie_keys] == ["from-the-other-name"]
    assert settings.max_concurrent == 3
    assert not settings.sandboxed


def test_dotenv_file_is_read_and_empty_value_is_unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BROKER_PORT=8123\nNANO_BANANA_API_KEY=\nBROKER_API_KEYS=one, two\n")
    settings = load_settings()
    assert (settings.port, settings.sandboxed) == (8123, True)
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]


def test_binary_dotenv_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\0garbage")
    with pytest.raises(SettingsError, match="UTF-8"):
        load_settings()


def test_secrets_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NANO_BANANA_API_KEY", "NANO_BANANA_WEBHOOK_KEY", "SECRET_KEY", "BROKER_API_KEYS"):
        monkeypatch.setenv(name, "canary-canary-canary")
    settings = load_settings()
    assert "canary" not in repr(settings)
    assert "canary" not in str(settings.model_dump())


def test_defaults_are_in_the_data_folder() -> None:
    settings = load_settings()
    assert settings.database == "sqlite:///data/broker.db"
    assert settings.blob_folder == Path("data/blobs")


def test_bucket_needs_a_name_and_both_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_BLOB_URL", "s3:")
    with pytest.raises(SettingsError, match="MINIO_BUCKET"):
        load_settings()
    monkeypatch.setenv("MINIO_BUCKET", "images")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2")
    with pytest.raises(SettingsError, match="go together") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("BROKER_BLOB_LINKS", "public")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(SettingsError, match="MINIO_PUBLIC_URL"):
        load_settings()


def test_minio_names_of_a_bucket_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "BROKER_BLOB_URL": "s3:/images/of/ours",
        "MINIO_ENDPOINT": "localhost:9000",
        "MINIO_ACCESS_KEY": "older-key",
        "MINIO_SECRET_KEY": "older-secret",
        "MINIO_BUCKET": "nano-banana-images",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = load_settings().bucket
    assert bucket is not None
    assert (bucket.name, bucket.prefix, bucket.endpoint) == (
        "nano-banana-images",
        "images/of/ours",
        "http://localhost:9000",
    )
    assert bucket.access_key == "older-key"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "newer-key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example.com")
    newer = load_settings().bucket
    assert newer is not None
    assert (newer.access_key, newer.endpoint) == ("newer-key", "https://s3.example.com")


def test_password_in_a_url_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hunter2@db.example.com:5432/broker?sslpassword=hunter2")
    settings = load_settings()
    assert settings.database_shown == "postgresql://db.example.com:5432/broker"
    assert "hunter2" not in f"{settings!r}{settings}{settings.model_dump()}"
    assert "hunter2" in settings.database


def test_isolated_settings_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANO_BANANA_API_KEY", "a-real-key")
    monkeypatch.setenv("BROKER_PORT", "8123")
    settings = load_settings(isolated=True)
    assert (settings.sandboxed, settings.port) == (True, 8000)


def test_errors_of_all_settings_classes_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_PORT", "x")
    monkeypatch.setenv("NANO_BANANA_API_URL", "x")
    with pytest.raises(SettingsError, match=r"(?s)BROKER_PORT.*NANO_BANANA_API_URL"):
        load_settings()


def test_unknown_override_is_an_error() -> None:
    with pytest.raises(TypeError, match="no setting is named prot"):
        load_settings(isolated=True, prot=8000)


def test_secret_values_are_those_of_every_package_and_passwords_in_addresses() -> None:
    signing_key = f"whsec_{'A' * 32}"
    settings = load_settings(
        isolated=True,
        kie_keys="key-one,key-two",
        webhook_key="hmac-key",
        api_keys="caller-one,caller-two",
        secret_key="secret-of-the-broker",
        webhook_secrets=signing_key,
        s3_access_key="access-key",
        s3_secret_key="bucket-key",
        database_url="postgresql://user:pass%20word@db.example/broker?password=in-the-query",
        database_listen_url="postgresql://user:other@db.example/broker",
    )
    providers, callers = {"key-one", "key-two", "hmac-key"}, {"caller-one", "caller-two"}
    own = {"secret-of-the-broker", signing_key, "access-key", "bucket-key"}
    assert settings.secret_values() == providers | callers | own | {"pass word", "in-the-query", "other"}
    assert load_settings(isolated=True).secret_values() == frozenset()


ACCEL = f"/_images_{'5e' * 16}/"


def test_location_of_nginx_is_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_ACCEL_PREFIX", ACCEL)
    monkeypatch.setenv("BROKER_BLOB_GROUP_READ", "true")
    settings = load_settings()
    assert settings.accel_prefix.get_secret_value() == ACCEL
    assert ACCEL in settings.secret_values()
    assert "5e5e" not in repr(settings)


@pytest.mark.parametrize(
    "value",
    ["_images_", "/", "/_images/", ACCEL[:-1], ACCEL[1:], f"{ACCEL}../", f"/..{ACCEL}", f"{ACCEL}\n", ACCEL * 2],
)
def test_wrong_location_of_nginx_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("BROKER_ACCEL_PREFIX", value)
    monkeypatch.setenv("BROKER_BLOB_GROUP_READ", "true")
    with pytest.raises(SettingsError, match=r"BROKER_ACCEL_PREFIX is wrong .*between two slashes"):
        load_settings()


@pytest.mark.parametrize(
    ("variables", "cure"),
    [
        ({}, "set BROKER_BLOB_GROUP_READ=true"),
        ({"BROKER_BLOB_GROUP_READ": "true", "BROKER_BLOB_URL": "s3://images"}, "BROKER_BLOB_LINKS"),
        (
            {"BROKER_BLOB_GROUP_READ": "true", "MINIO_ENDPOINT": "localhost:9000", "MINIO_BUCKET": "images"},
            "BROKER_BLOB_LINKS",
        ),
    ],
)
def test_location_of_nginx_needs_a_folder_that_it_can_read(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], cure: str
) -> None:
    monkeypatch.setenv("BROKER_ACCEL_PREFIX", ACCEL)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"BROKER_ACCEL_PREFIX is wrong .*{cure}"):
        load_settings()
