"""The broker's own environment variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings

from broker.settings.types import (
    SETTINGS_CONFIG,
    BlobLinks,
    Bucket,
    HttpUrl,
    Names,
    PackageSettings,
    Seconds,
    Secrets,
    check_http_url,
    env_names,
)
from webhooks.signatures.standard import read_secret

_BUCKET = re.compile(r"s3:(?://)?([a-z0-9][a-z0-9.\-]{1,61}[a-z0-9])?(?:/([A-Za-z0-9_.\-/]*))?")
_P = TypeVar("_P", bound=PackageSettings)


def _is_postgres(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in {"postgresql", "postgres"} and bool(parts.netloc or parts.query)


class Settings(BaseSettings):
    """The configuration of one process. Secrets are printed as `**********`."""

    model_config = SETTINGS_CONFIG
    _packages: tuple[PackageSettings, ...] = PrivateAttr(default=())

    webhook_base_url: str = Field("", validation_alias=env_names("WEBHOOK_BASE_URL"))
    tunnel_api: HttpUrl = Field("http://127.0.0.1:4040", validation_alias=env_names("BROKER_TUNNEL_API"))

    database_url: SecretStr = Field(SecretStr(""), validation_alias=env_names("DATABASE_URL"))
    database_listen_url: SecretStr = Field(SecretStr(""), validation_alias=env_names("BROKER_DATABASE_LISTEN_URL"))
    database_connections: int = Field(10, ge=2, le=1000, validation_alias=env_names("BROKER_DATABASE_CONNECTIONS"))
    blob_url: str = Field("", validation_alias=env_names("BROKER_BLOB_URL"))
    blob_links: BlobLinks = Field("none", validation_alias=env_names("BROKER_BLOB_LINKS"))
    s3_endpoint: str = Field(
        "", validation_alias=env_names("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT")
    )
    s3_use_ssl: bool = Field(False, validation_alias=env_names("MINIO_USE_SSL"))
    s3_region: str = Field("us-east-1", validation_alias=env_names("AWS_REGION", "AWS_DEFAULT_REGION"))
    s3_access_key: SecretStr | None = Field(None, validation_alias=env_names("AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY"))
    s3_secret_key: SecretStr | None = Field(
        None, validation_alias=env_names("AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY")
    )
    s3_session_token: SecretStr | None = Field(None, validation_alias=env_names("AWS_SESSION_TOKEN"))
    s3_bucket: str = Field("", validation_alias=env_names("MINIO_BUCKET"))
    s3_public_url: str = Field("", validation_alias=env_names("MINIO_PUBLIC_URL"))
    data_dir: Path = Field(Path("data"), validation_alias=env_names("BROKER_DATA_DIR"))
    secret_key: SecretStr | None = Field(None, validation_alias=env_names("SECRET_KEY"), min_length=16)

    host: str = Field("127.0.0.1", validation_alias=env_names("BROKER_HOST"))
    port: int = Field(8000, ge=0, le=65535, validation_alias=env_names("BROKER_PORT"))
    connections_per_peer: int = Field(64, gt=0, validation_alias=env_names("BROKER_CONNECTIONS_PER_PEER"))
    api_keys: Secrets = Field((), validation_alias=env_names("BROKER_API_KEYS"))
    allow_anonymous: bool = Field(False, validation_alias=env_names("BROKER_ALLOW_ANONYMOUS"))
    cors_origins: Names = Field((), validation_alias=env_names("BROKER_CORS_ORIGINS"))

    retention_hours: float = Field(24, gt=0, le=87600, validation_alias=env_names("BROKER_RETENTION_HOURS"))
    check_after: Seconds = Field(30, validation_alias=env_names("BROKER_CHECK_AFTER_SECONDS"))
    poll_every: Seconds = Field(3, validation_alias=env_names("BROKER_POLL_SECONDS"))
    task_deadline: Seconds = Field(900, validation_alias=env_names("BROKER_TASK_DEADLINE_SECONDS"))
    retry_after: Seconds = Field(2, validation_alias=env_names("BROKER_RETRY_SECONDS"))
    lease: Seconds = Field(30, validation_alias=env_names("BROKER_LEASE_SECONDS"))
    resubmit_unknown: bool = Field(False, validation_alias=env_names("BROKER_RESUBMIT_UNKNOWN"))

    webhook_secrets: Secrets = Field((), validation_alias=env_names("BROKER_WEBHOOK_SECRETS"))
    callback_allow: Names = Field((), validation_alias=env_names("BROKER_CALLBACK_ALLOW"))

    download_allow: Names = Field((), validation_alias=env_names("BROKER_DOWNLOAD_ALLOW"))
    max_download_bytes: int = Field(64 * 2**20, gt=0, validation_alias=env_names("BROKER_MAX_DOWNLOAD_BYTES"))
    max_pixels: int = Field(120_000_000, gt=0, validation_alias=env_names("BROKER_MAX_PIXELS"))
    max_file_size: int = Field(10_485_760, gt=0, validation_alias=env_names("MAX_FILE_SIZE"))
    max_concurrent: int | None = Field(
        None, gt=0, validation_alias=env_names("MAX_CONCURRENT_GENERATIONS", "MAX_WORKERS")
    )
    rate_per_minute: int = Field(60, gt=0, validation_alias=env_names("RATE_LIMIT_PER_MINUTE"))
    request_timeout: Seconds = Field(120, validation_alias=env_names("REQUEST_TIMEOUT_SECONDS"))
    max_connections: int = Field(100, gt=0, validation_alias=env_names("MAX_CONNECTIONS"))

    log_level: str = Field("INFO", validation_alias=env_names("LOG_LEVEL"))
    log_format: str = Field("console", validation_alias=env_names("BROKER_LOG_FORMAT"))
    log_dir: Path | None = Field(None, validation_alias=env_names("BROKER_LOG_DIR"))

    sandbox_mood: str = Field("", validation_alias=env_names("BROKER_SANDBOX_MOOD"))

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
            return check_http_url(value) if value else ""
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
        return check_http_url(value) if value else ""

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
            raise ValueError(
                "BROKER_BLOB_LINKS is public: set MINIO_PUBLIC_URL to the URL at which the bucket can be read"
            )
        return self

    @property
    def database(self) -> str:
        """URL of the database, which may contain a password."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'broker.db'}"

    @property
    def database_shown(self) -> str:
        """URL of the database without user, password and options."""
        if not _is_postgres(self.database):
            return self.database
        parts = urlsplit(self.database)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def shared(self) -> bool:
        """True if other machines may work on the same tasks."""
        return _is_postgres(self.database)

    @property
    def blobs(self) -> Path:
        """The folder of the images, or of the staging area of a bucket."""
        if self.blob_url.startswith("file:"):
            return Path(self.blob_url.removeprefix("file:"))
        return self.data_dir / "blobs"

    @property
    def bucket(self) -> Bucket | None:
        """The bucket of the images, or None for a folder."""
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
        """Add the scheme to a bare host; MinIO's variables have a flag for TLS instead."""
        if not address or "://" in address:
            return address or None
        return f"{'https' if self.s3_use_ssl else 'http'}://{address}"

    @property
    def sandboxed(self) -> bool:
        """True if no provider is configured: the sandbox provider is used."""
        return not any(package.is_configured for package in self._packages)

    def package(self, kind: type[_P]) -> _P:
        """Return the settings of a package."""
        return next(package for package in self._packages if isinstance(package, kind))

    def with_packages(self, *packages: PackageSettings) -> Settings:
        """Return a copy in which these replace the packages of their kinds."""
        copy = self.model_copy()
        kinds = tuple(map(type, packages))
        copy._packages = (*packages, *(package for package in self._packages if not isinstance(package, kinds)))
        return copy
