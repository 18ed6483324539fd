"""The broker's own environment variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, PrivateAttr, SecretStr
from pydantic_settings import BaseSettings

from broker.settings.stores import StoreSettings
from broker.settings.types import (
    HOST_AND_PORT,
    SETTINGS_CONFIG,
    CommaSeparated,
    HttpUrl,
    PackageSettings,
    Seconds,
    env,
    http_url,
    matching,
)
from webhooks.signatures.standard import read_secret

_P = TypeVar("_P", bound=PackageSettings)


def _check_signing_key(secret: SecretStr) -> SecretStr:
    try:
        read_secret(secret.get_secret_value())
    except ValueError as error:
        raise ValueError(
            f"{error}: use whsec_ and 24 to 64 random bytes in base64 (openssl rand -base64 32), several "
            "separated by commas; or delete the variable, and one is derived from SECRET_KEY"
        ) from None
    return secret


def _secrets_in(settings: BaseSettings) -> Iterator[SecretStr]:
    """Yield the secrets in the fields of a settings class."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, SecretStr):
                yield item


def _passwords_in(address: str) -> set[str]:
    """Return the password of a database, which may be among the options of its URL."""
    parts = urlsplit(address)
    return {unquote(parts.password or ""), dict(parse_qsl(parts.query)).get("password", "")}


PublicUrl = Annotated[
    str,
    http_url(
        "use a public URL like https://broker.example.com, without user name or password, or leave it empty", other=""
    ),
]
BrokerUrl = Annotated[
    str,
    http_url("use the address of a broker like https://broker.example.com, without user name or password", other=""),
]
SecretKey = Annotated[
    SecretStr | None, matching(r"(?s).{16,}", "at least 16 characters; delete the variable, and one is generated")
]
OldSecretKey = Annotated[
    SecretStr, matching(r"(?s).{16,}", "use the earlier values of SECRET_KEY, separated by commas")
]
BearerKey = Annotated[SecretStr, matching(r"[^\s\x00-\x1f\x7f-\x9f]+", "use keys without blanks, separated by commas")]
Origin = Annotated[
    str, matching(r"https?://[A-Za-z0-9.\-\[\]:]+", "use exact origins like https://app.example.com; * is not one")
]
HostAndPort = Annotated[str, matching(HOST_AND_PORT, "use host or host:port, separated by commas, without http://")]
SigningKey = Annotated[SecretStr, AfterValidator(_check_signing_key)]
Count = Annotated[int, Field(ge=0, le=10**15)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)]


class Settings(StoreSettings):
    """The configuration of one process. Secrets are printed as `**********`."""

    model_config = SETTINGS_CONFIG
    other_names: ClassVar[Mapping[str, str]] = {
        "ALGORITHM": "tokens are random and kept in the database, so there is no algorithm to choose; remove it",
        "PWD_SCHEMES": "passwords are always stored as argon2id, so there is no scheme to choose; remove it",
        "(NEXT_PUBLIC_)?WEBHOOK_URL|NEXT_PUBLIC_(WEBHOOK_)?BASE_URL|CALLBACK_BASE_URL": "WEBHOOK_BASE_URL",
    }
    """Names of the systems that the broker replaces, see `broker.settings.other_names`."""
    _packages: tuple[PackageSettings, ...] = PrivateAttr(default=())
    _unread: tuple[str, ...] = PrivateAttr(default=())

    webhook_base_url: PublicUrl = env("WEBHOOK_BASE_URL", default="")
    tunnel_api: HttpUrl = env("BROKER_TUNNEL_API", default="http://127.0.0.1:4040")

    secret_key: SecretKey = env("SECRET_KEY")
    old_secret_keys: CommaSeparated[OldSecretKey] = env("BROKER_OLD_SECRET_KEYS", default=())

    host: str = env("BROKER_HOST", default="127.0.0.1")
    port: int = env("BROKER_PORT", default=8000, ge=0, le=65535)
    http: Literal["httptools", "h11"] | None = env("BROKER_HTTP")
    workers: int = env("WORKERS", default=1, ge=1, le=256)
    connections_per_peer: PositiveInt = env("BROKER_CONNECTIONS_PER_PEER", default=64)
    api_keys: CommaSeparated[BearerKey] = env("BROKER_API_KEYS", default=())
    broker_url: BrokerUrl = env("BROKER_URL", default="")
    broker_key: BearerKey | None = env("BROKER_KEY")
    allow_anonymous: bool = env("BROKER_ALLOW_ANONYMOUS", default=False)
    admin_sees_content: bool = env("BROKER_ADMIN_SEES_CONTENT", default=False)
    registration: Literal["closed", "open"] = env("BROKER_REGISTRATION", default="closed")
    admin_username: str = env("BROKER_ADMIN_USERNAME", default="")
    admin_password: SecretStr | None = env("BROKER_ADMIN_PASSWORD")
    admin_password_file: Path | None = env("BROKER_ADMIN_PASSWORD_FILE")
    access_token_minutes: float = env("ACCESS_TOKEN_EXPIRE_MINUTES", default=180, gt=0, le=525_600)
    refresh_token_days: float = env("REFRESH_TOKEN_EXPIRE_DAYS", default=7, gt=0, le=3650)
    cors_origins: CommaSeparated[Origin] = env("BROKER_CORS_ORIGINS", default=())

    hold: Seconds = env("BROKER_HOLD_SECONDS", default=600)
    gemini_spelling: Literal["both", "camel", "snake"] = env("BROKER_GEMINI_SPELLING", default="both")
    openai_model: str = env("BROKER_OPENAI_MODEL", default="")

    providers: CommaSeparated[str] = env("BROKER_PROVIDERS", default=())
    route: Literal["order", "price"] = env("BROKER_ROUTE", default="order")

    retention_hours: float = env("BROKER_RETENTION_HOURS", default=24, gt=0, le=87600)
    check_after: Seconds = env("BROKER_CHECK_AFTER_SECONDS", default=30)
    poll_every: Seconds = env("BROKER_POLL_SECONDS", default=3)
    task_deadline: Seconds = env("BROKER_TASK_DEADLINE_SECONDS", default=900)
    retry_after: Seconds = env("BROKER_RETRY_SECONDS", default=2)
    lease: Seconds = env("BROKER_LEASE_SECONDS", default=30)
    resubmit_unknown: bool = env("BROKER_RESUBMIT_UNKNOWN", default=False)

    webhook_secrets: CommaSeparated[SigningKey] = env("BROKER_WEBHOOK_SECRETS", default=())
    callback_allow: CommaSeparated[HostAndPort] = env("BROKER_CALLBACK_ALLOW", default=())

    download_allow: CommaSeparated[HostAndPort] = env("BROKER_DOWNLOAD_ALLOW", default=())
    max_download_bytes: PositiveInt = env("BROKER_MAX_DOWNLOAD_BYTES", default=64 * 2**20)
    max_pixels: PositiveInt = env("BROKER_MAX_PIXELS", default=120_000_000)
    max_decode_bytes: PositiveInt = env("BROKER_MAX_DECODE_BYTES", default=384 * 2**20)
    max_file_size: PositiveInt = env("MAX_FILE_SIZE", "NEXT_PUBLIC_MAX_FILE_SIZE", default=10_485_760)
    max_concurrent: PositiveInt | None = env("MAX_CONCURRENT_GENERATIONS", "MAX_WORKERS")
    daily_budget: float | None = env("BROKER_DAILY_BUDGET", gt=0, le=1_000_000, allow_inf_nan=False)
    user_daily_images: Count | None = env("BROKER_USER_DAILY_IMAGES")
    user_daily_budget: float | None = env("BROKER_USER_DAILY_BUDGET", ge=0, le=1_000_000, allow_inf_nan=False)
    user_in_flight: Count | None = env("BROKER_USER_IN_FLIGHT")
    user_pins: Count | None = env("BROKER_USER_PINS")
    user_bytes: Count | None = env("BROKER_USER_BYTES")
    rate_per_minute: PositiveInt = env("RATE_LIMIT_PER_MINUTE", default=60)
    request_timeout: Seconds = env("REQUEST_TIMEOUT_SECONDS", default=120)
    max_connections: PositiveInt = env("MAX_CONNECTIONS", default=100)

    log_level: LogLevel = env("LOG_LEVEL", default="INFO")
    log_format: Literal["console", "json"] = env("BROKER_LOG_FORMAT", default="console")
    log_dir: Path | None = env("BROKER_LOG_DIR")

    sandbox_mood: str = env("BROKER_SANDBOX_MOOD", default="")

    @property
    def old_secrets(self) -> tuple[bytes, ...]:
        """Values of SECRET_KEY before the current one."""
        return tuple(secret.get_secret_value().encode() for secret in self.old_secret_keys)

    @property
    def user_quotas(self) -> Mapping[str, int | float | None]:
        """The limits of every user, and of every API key without a user, by the names of quotas; None: no limit."""
        return {
            "images": self.user_daily_images,
            "usd": self.user_daily_budget,
            "in_flight": self.user_in_flight,
            "pins": self.user_pins,
            "bytes": self.user_bytes,
        }

    def secret_values(self) -> frozenset[str]:
        """Return every secret of these settings and of the packages, and the passwords in addresses."""
        values = {secret.get_secret_value() for settings in (self, *self._packages) for secret in _secrets_in(settings)}
        addresses = {value for value in values if re.match(r"sqlite:|postgres(ql)?://", value)}
        return frozenset(values - addresses).union(*map(_passwords_in, addresses)) - {""}

    @property
    def sandboxed(self) -> bool:
        """True if no provider is configured: the sandbox provider is used."""
        return not any(package.is_configured for package in self._packages)

    def package(self, kind: type[_P]) -> _P:
        """Return the settings of a package."""
        return next(package for package in self._packages if isinstance(package, kind))

    @property
    def unread_variables(self) -> tuple[str, ...]:
        """A sentence with its cure for each variable that is set, and is not read or has no effect."""
        return self._unread

    def with_unread(self, sentences: tuple[str, ...]) -> Settings:
        """Return a copy with these `unread_variables`."""
        copy = self.model_copy()
        copy._unread = sentences
        return copy

    def with_packages(self, *packages: PackageSettings) -> Settings:
        """Return a copy in which these replace the packages of their kinds."""
        copy = self.model_copy()
        kinds = tuple(map(type, packages))
        copy._packages = (*packages, *(package for package in self._packages if not isinstance(package, kinds)))
        return copy
