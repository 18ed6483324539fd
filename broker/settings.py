"""Every environment variable: name, default, shape, cure. Read once and frozen; nothing else reads the environment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.errors import SettingsError
from webhooks.signatures.standard import read_secret


def _split(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]
Links = Literal["none", "presigned", "public"]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]


def _named(name: str, *others: str) -> Any:
    return AliasChoices(name, *others)


_BUCKET = re.compile(r"s3:(?://)?([a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])?(?:/([A-Za-z0-9_.\-/]*))?")


def _is_postgres(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"postgresql", "postgres"} and bool(parts.netloc or parts.query)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A place in an S3-compatible store. endpoint: None = AWS itself. keys: None = those of the machine's role.

    links: whether callers are sent to the store for results, and how. public_base: where everybody may read the bucket.
    """

    name: str
    prefix: str
    endpoint: str | None
    region: str
    access_key: SecretStr | None
    secret_key: SecretStr | None
    session_token: SecretStr | None
    links: Links
    public_base: str | None


class Settings(BaseSettings):
    """The configuration of one process. Secrets show themselves as `**********` wherever they are printed."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True, case_sensitive=True
    )

    api_key: SecretStr | None = Field(None, validation_alias=_named("NANO_BANANA_API_KEY", "KIE_API_KEY"))
    api_url: str = Field("https://api.kie.ai", validation_alias=_named("NANO_BANANA_API_URL"))
    upload_url: str = Field("https://kieai.redpandaai.co", validation_alias=_named("NANO_BANANA_UPLOAD_URL"))
    webhook_key: SecretStr | None = Field(None, validation_alias=_named("NANO_BANANA_WEBHOOK_KEY"))
    webhook_base_url: str = Field("", validation_alias=_named("WEBHOOK_BASE_URL"))
    tunnel_api: str = Field("http://127.0.0.1:4040", validation_alias=_named("BROKER_TUNNEL_API"))
    upload_references: bool = Field(False, validation_alias=_named("BROKER_UPLOAD_REFERENCES"))

    database_url: SecretStr = Field(SecretStr(""), validation_alias=_named("DATABASE_URL"))
    database_listen_url: SecretStr = Field(SecretStr(""), validation_alias=_named("BROKER_DATABASE_LISTEN_URL"))
    database_connections: int = Field(10, ge=2, le=1000, validation_alias=_named("BROKER_DATABASE_CONNECTIONS"))
    blob_url: str = Field("", validation_alias=_named("BROKER_BLOB_URL"))
    blob_links: Links = Field("none", validation_alias=_named("BROKER_BLOB_LINKS"))
    s3_endpoint: str = Field("", validation_alias=_named("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT"))
    s3_use_ssl: bool = Field(False, validation_alias=_named("MINIO_USE_SSL"))
    s3_region: str = Field("us-east-1", validation_alias=_named("AWS_REGION", "AWS_DEFAULT_REGION"))
    s3_access_key: SecretStr | None = Field(None, validation_alias=_named("AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY"))
    s3_secret_key: SecretStr | None = Field(None, validation_alias=_named("AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY"))
    s3_session_token: SecretStr | None = Field(None, validation_alias=_named("AWS_SESSION_TOKEN"))
    s3_bucket: str = Field("", validation_alias=_named("MINIO_BUCKET"))
    s3_public_url: str = Field("", validation_alias=_named("MINIO_PUBLIC_URL"))
    data_dir: Path = Field(Path("data"), validation_alias=_named("BROKER_DATA_DIR"))
    secret_key: SecretStr | None = Field(None, validation_alias=_named("SECRET_KEY"), min_length=16)

    host: str = Field("127.0.0.1", validation_alias=_named("BROKER_HOST"))
    port: int = Field(8000, ge=0, le=65535, validation_alias=_named("BROKER_PORT"))
    connections_per_peer: int = Field(64, gt=0, validation_alias=_named("BROKER_CONNECTIONS_PER_PEER"))
    api_keys: Secrets = Field((), validation_alias=_named("BROKER_API_KEYS"))
    allow_anonymous: bool = Field(False, validation_alias=_named("BROKER_ALLOW_ANONYMOUS"))
    cors_origins: Names = Field((), validation_alias=_named("BROKER_CORS_ORIGINS"))

    retention_hours: float = Field(24, gt=0, le=87600, validation_alias=_named("BROKER_RETENTION_HOURS"))
    check_after: Seconds = Field(30, validation_alias=_named("BROKER_CHECK_AFTER_SECONDS"))
    poll_every: Seconds = Field(3, validation_alias=_named("BROKER_POLL_SECONDS"))
    task_deadline: Seconds = Field(900, validation_alias=_named("BROKER_TASK_DEADLINE_SECONDS"))
    retry_after: Seconds = Field(2, validation_alias=_named("BROKER_RETRY_SECONDS"))
    lease: Seconds = Field(30, validation_alias=_named("BROKER_LEASE_SECONDS"))
    resubmit_unknown: bool = Field(False, validation_alias=_named("BROKER_RESUBMIT_UNKNOWN"))

    webhook_secrets: Secrets = Field((), validation_alias=_named("BROKER_WEBHOOK_SECRETS"))
    callback_allow: Names = Field((), validation_alias=_named("BROKER_CALLBACK_ALLOW"))

    download_allow: Names = Field((), validation_alias=_named("BROKER_DOWNLOAD_ALLOW"))
    max_download_bytes: int = Field(64 * 2**20, gt=0, validation_alias=_named("BROKER_MAX_DOWNLOAD_BYTES"))
    max_pixels: int = Field(120_000_000, gt=0, validation_alias=_named("BROKER_MAX_PIXELS"))
    max_file_size: int = Field(10_485_760, gt=0, validation_alias=_named("MAX_FILE_SIZE"))
    max_concurrent: int | None = Field(None, gt=0, validation_alias=_named("MAX_CONCURRENT_GENERATIONS", "MAX_WORKERS"))
    creates_per_10s: int = Field(20, gt=0, validation_alias=_named("NANO_BANANA_CREATES_PER_10S"))
    rate_per_minute: int = Field(60, gt=0, validation_alias=_named("RATE_LIMIT_PER_MINUTE"))
    request_timeout: Seconds = Field(120, validation_alias=_named("REQUEST_TIMEOUT_SECONDS"))
    max_connections: int = Field(100, gt=0, validation_alias=_named("MAX_CONNECTIONS"))

    log_level: str = Field("INFO", validation_alias=_named("LOG_LEVEL"))
    log_format: str = Field("console", validation_alias=_named("BROKER_LOG_FORMAT"))
    log_dir: Path | None = Field(None, validation_alias=_named("BROKER_LOG_DIR"))

    sandbox_mood: str = Field("", validation_alias=_named("BROKER_SANDBOX_MOOD"))

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
            raise ValueError("use DEBUG, INFO, WARNING, ERROR or CRITICAL")
        return value.upper()

    @field_validator("log_format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in {"console", "json"}:
            raise ValueError("use console or json")
        return value

    @field_validator("api_url", "upload_url", "tunnel_api")
    @classmethod
    def _http_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise ValueError("use an address like https://api.kie.ai, without user name, password or key in it")
        return value.rstrip("/")

    @field_validator("api_key")
    @classmethod
    def _header_value(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("use the key as the provider shows it: visible ASCII characters, without blanks")
        return value

    @field_validator("api_keys")
    @classmethod
    def _bearer_values(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for key in value:
            if not key.get_secret_value().isprintable() or " " in key.get_secret_value():
                raise ValueError("use keys without blanks, separated by commas; any other cannot be sent to us")
        return value

    @field_validator("webhook_base_url")
    @classmethod
    def _public_address(cls, value: str) -> str:
        try:
            return cls._http_address(value) if value else ""
        except ValueError:
            raise ValueError(
                "use the public URL of the broker, like https://broker.example.com, without user name or password, "
                "or leave it empty"
            ) from None

    @field_validator("cors_origins")
    @classmethod
    def _exact_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin):
                raise ValueError("use exact origins like https://app.example.com, separated by commas; * is not one")
        return value

    @field_validator("webhook_secrets")
    @classmethod
    def _signing_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            try:
                read_secret(secret.get_secret_value())
            except ValueError as error:
                raise ValueError(
                    f"{error}: use whsec_ and 24 to 64 random bytes in base64 (openssl rand -base64 32), several "
                    "separated by commas; or delete the variable, and one is derived from SECRET_KEY"
                ) from None
        return value

    @field_validator("download_allow", "callback_allow")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not re.fullmatch(r"(?:[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", entry):
                raise ValueError("use host or host:port, separated by commas, without http://")
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and not url.startswith("sqlite:///") and not _is_postgres(url):
            raise ValueError("use sqlite:///data/broker.db or postgresql://user:password@host:5432/name")
        return value

    @field_validator("database_listen_url")
    @classmethod
    def _direct_address(cls, value: SecretStr) -> SecretStr:
        url = value.get_secret_value()
        if url and url != "none" and not _is_postgres(url):
            raise ValueError("use the address of Postgres itself, postgresql://user:password@host:5432/name, or none")
        return value

    @field_validator("blob_url")
    @classmethod
    def _known_blobs(cls, value: str) -> str:
        if value and not value.startswith("file:") and not _BUCKET.fullmatch(value):
            raise ValueError("use file:data/blobs or s3://bucket/prefix")
        return value

    @field_validator("s3_endpoint", "s3_public_url")
    @classmethod
    def _bare_or_http(cls, value: str) -> str:
        if value and "://" not in value and re.fullmatch(r"[A-Za-z0-9.\-]+(?::[0-9]{1,5})?", value):
            return value
        return cls._http_address(value) if value else ""

    @model_validator(mode="after")
    def _whole_bucket(self) -> Settings:
        bucket = self.bucket
        if bucket is not None and not bucket.name:
            raise ValueError(
                "BROKER_BLOB_URL names no bucket: use s3://bucket/prefix, or set MINIO_BUCKET beside s3://"
            )
        if bucket is not None and (bucket.access_key is None) != (bucket.secret_key is None):
            raise ValueError(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together: set both, or none for a role's own"
            )
        if bucket is not None and self.blob_links == "public" and not self.s3_public_url:
            raise ValueError("BROKER_BLOB_LINKS is public: set MINIO_PUBLIC_URL to where everybody reads the bucket")
        return self

    @property
    def database(self) -> str:
        """May have a password in it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'broker.db'}"

    @property
    def database_shown(self) -> str:
        """For people to read: without user, password and options."""
        if not _is_postgres(self.database):
            return self.database
        parts = urlsplit(self.database)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def shared(self) -> bool:
        """Whether other machines may work on the same tasks."""
        return _is_postgres(self.database)

    @property
    def blobs(self) -> Path:
        """The folder of the images, or that of drafts on their way into a bucket."""
        if self.blob_url.startswith("file:"):
            return Path(self.blob_url.removeprefix("file:"))
        return self.data_dir / "blobs"

    @property
    def bucket(self) -> Bucket | None:
        """Where the images are, if not in a folder."""
        match = _BUCKET.fullmatch(self.blob_url)
        if match is None:
            return None
        return Bucket(
            name=match[1] or self.s3_bucket,
            prefix=match[2] or "",
            endpoint=self._with_scheme(self.s3_endpoint),
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
            session_token=self.s3_session_token,
            links=self.blob_links,
            public_base=self._with_scheme(self.s3_public_url),
        )

    def _with_scheme(self, address: str) -> str | None:
        """MinIO's own names have the host alone, and a truth for TLS."""
        if not address or "://" in address:
            return address or None
        return f"{'https' if self.s3_use_ssl else 'http'}://{address}"

    @property
    def sandboxed(self) -> bool:
        """No provider key at all: the sandbox provider answers."""
        return self.api_key is None


_LIMITS: Final = {
    "greater_than": "greater than",
    "greater_than_equal": "not less than",
    "less_than": "less than",
    "less_than_equal": "not greater than",
}
_SHAPES: Final = {
    "secret_key": "at least 16 characters; delete the variable and one is made for you",
}


def load(*, env_file: Path | None = Path(".env"), **overrides: Any) -> Settings:
    """The settings of this process. Raises `SettingsError` naming each wrong variable, its value's shape, the cure.

    env_file: read beside the environment. overrides: by field name, stronger than both.
    """
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[call-arg]  # pydantic-settings' own parameter
    except UnicodeDecodeError:
        raise SettingsError(f"{env_file} is no text in UTF-8: write it anew, see .env.example") from None
    except ValidationError as error:
        raise SettingsError("\n".join(_complaint(e) for e in error.errors(include_input=True))) from None


@dataclass(frozen=True, kw_only=True)
class Salvaged:
    """Settings with the defaults in place of what is wrong. wrong: those fields. complaints: why, and the cures."""

    settings: Settings
    wrong: frozenset[str] = frozenset()
    complaints: tuple[str, ...] = ()


def salvage(*, env_file: Path | None = Path(".env")) -> Salvaged:
    """What can be had in spite of wrong variables, for whoever looks for all that is wrong."""
    defaults: dict[str, Any] = {}
    complaints: dict[str, None] = {}
    while True:
        try:
            settings = Settings(_env_file=env_file, **defaults)  # type: ignore[call-arg]
        except UnicodeDecodeError:
            complaints[f"{env_file} is no text in UTF-8: write it anew, see .env.example"] = None
            env_file = None
        except ValidationError as error:
            errors = error.errors(include_input=True)
            complaints |= dict.fromkeys(map(_complaint, errors))
            wrong = {_field_of(_variable(str(e["loc"][0]))) if e["loc"] else "blob_url" for e in errors}
            if wrong <= defaults.keys():
                raise SettingsError("\n".join(complaints)) from None
            defaults |= {name: Settings.model_fields[name].default for name in wrong}
        else:
            return Salvaged(settings=settings, wrong=frozenset(defaults), complaints=tuple(complaints))


def _complaint(error: Any) -> str:
    if not error["loc"]:  # about several variables together; the sentence names them
        return str(error["msg"]).removeprefix("Value error, ")
    field = str(error["loc"][0])
    variable = _variable(field)
    cure = _SHAPES.get(_field_of(variable)) or _cure(error)
    return f"{variable} is wrong ({_shape(error.get('input'))}): {cure}"


def _cure(error: Any) -> str:
    """What to write instead, in our words; the library's own are about its types."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind.startswith("int_"):
        return "use a whole number"
    if kind.startswith("float_"):
        return "use a number"
    if kind.startswith("bool_"):
        return "use true or false"
    if kind == "literal_error":
        return f"use {limits['expected']}"
    for name, words in _LIMITS.items():
        if kind == name:
            return f"use a number {words} {next(iter(limits.values()))}"
    return str(error["msg"]).removeprefix("Value error, ")


def _variable(location: str) -> str:
    """The primary name of the variable behind a pydantic location, which may be a field or one of its aliases."""
    for name, field in Settings.model_fields.items():
        names = _aliases(field)
        if location == name or location in names:
            return names[0]
    return location


def _field_of(variable: str) -> str:
    return next((name for name, field in Settings.model_fields.items() if variable in _aliases(field)), variable)


def _aliases(field: Any) -> list[str]:
    return [str(choice) for choice in field.validation_alias.choices]


def _shape(value: object) -> str:
    """What a value looks like, never what it is."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, str):
        kind = "a number" if re.fullmatch(r"-?[0-9.]+", value) else "text"
        return f"{kind} of {len(value)} characters"
    return type(value).__name__


def variables() -> list[str]:
    """Every name that is understood, primary names first among their aliases."""
    return [alias for field in Settings.model_fields.values() for alias in _aliases(field)]
