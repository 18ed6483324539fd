"""Variables of the places where rows and images are kept: the database, the bucket, the data folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import quote, urlsplit

from pydantic import BeforeValidator, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings

from broker.settings.types import HOST_AND_PORT, env, http_url, matching
from storage.blobs.store import BlobLinks, Bucket

_PREFIX: Final = r"(?:(?!\.{1,2}(?:/|$))[A-Za-z0-9_.\-]+(?:/|$))*"  # obstore lists no key with an empty or dotted part
_BUCKET: Final = rf"s3:(?://)?([a-z0-9][a-z0-9.\-]{{1,61}}[a-z0-9])?(?:/({_PREFIX}))?"
_DSN: Final = "postgresql://user:password@host:5432/name"
_SERVER: Final = r"[A-Za-z0-9.\-_]+|\[?[0-9A-Fa-f:.]+\]?|/[^\s?#]+"
_POSTGRES: Final = r"postgres(?:ql)?://(?:[^/?#].*|[^?#]*\?.+)"


def _without_driver(value: object) -> object:
    """Return a URL without the driver that SQLAlchemy's have: `postgresql+asyncpg://` is `postgresql://`."""
    return re.sub(r"\A(sqlite|postgres(?:ql)?)\+\w+://", r"\1://", value) if isinstance(value, str) else value


DatabaseUrl = Annotated[
    SecretStr,
    BeforeValidator(_without_driver),
    matching(rf"sqlite:///.*|{_POSTGRES}", f"use sqlite:///data/broker.db or {_DSN}"),
]
ListenUrl = Annotated[SecretStr, matching(f"none|{_POSTGRES}", f"use the address of Postgres itself, {_DSN}, or none")]
BlobUrl = Annotated[str, matching(f"file:.*|{_BUCKET}", "use file:data/blobs or s3://bucket/prefix")]
BucketName = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9._\-]*", "use letters, digits, dots and dashes")]
StoreUrl = Annotated[
    str,
    http_url("use an address like https://s3.example.com, without user name or password", other=f"({HOST_AND_PORT})?"),
]
ServerName = Annotated[
    str, matching(_SERVER, "use the name or address of the Postgres server alone, or the folder of its socket")
]
AccelPrefix = Annotated[
    SecretStr,
    matching(
        r"/[A-Za-z0-9_\-]{24,128}/",
        "use the secret name of an internal location of nginx, 24 letters and digits or more between two slashes, like "
        "/_images_<openssl rand -hex 16>/",
    ),
]


class StoreSettings(BaseSettings):
    """The variables of the database and of the images."""

    database_url: DatabaseUrl = env("DATABASE_URL", default=SecretStr(""))
    postgres_host: ServerName = env("POSTGRES_HOST", default="")
    postgres_port: int = env("POSTGRES_PORT", default=5432, ge=1, le=65535)
    postgres_db: str = env("POSTGRES_DB", default="nano_banana")
    postgres_user: str = env("POSTGRES_USER", default="postgres")
    postgres_password: SecretStr | None = env("POSTGRES_PASSWORD")
    database_listen_url: ListenUrl = env("BROKER_DATABASE_LISTEN_URL", default=SecretStr(""))
    database_connections: int = env("BROKER_DATABASE_CONNECTIONS", default=10, ge=2, le=1000)
    blob_url: BlobUrl = env("BROKER_BLOB_URL", default="")
    blob_links: BlobLinks = env("BROKER_BLOB_LINKS", default="none")
    blob_group_read: bool = env("BROKER_BLOB_GROUP_READ", default=False)
    s3_endpoint: StoreUrl = env("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT", default="")
    s3_use_ssl: bool = env("MINIO_USE_SSL", default=False)
    s3_region: str = env("AWS_REGION", "AWS_DEFAULT_REGION", default="us-east-1")
    s3_access_key: SecretStr | None = env("AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY")
    s3_secret_key: SecretStr | None = env("AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY")
    s3_session_token: SecretStr | None = env("AWS_SESSION_TOKEN")
    s3_bucket: BucketName = env("MINIO_BUCKET", default="")
    s3_public_url: StoreUrl = env("MINIO_PUBLIC_URL", default="")
    accel_prefix: AccelPrefix = env("BROKER_ACCEL_PREFIX", default=SecretStr(""))
    """After the variables that its check reads."""
    data_dir: Path = env("BROKER_DATA_DIR", default=Path("data"))

    @field_validator("accel_prefix")
    @classmethod
    def _check_accel_prefix(cls, prefix: SecretStr, others: ValidationInfo) -> SecretStr:
        """Refuse a prefix where nginx cannot read the images. others: the right values of the fields above."""
        of = others.data.get
        if not prefix.get_secret_value():
            return prefix
        if _match_bucket(*(of(name, "") for name in ("blob_url", "s3_bucket", "s3_endpoint"))):
            raise ValueError("nginx cannot read a bucket; remove it, and see BROKER_BLOB_LINKS")
        if not of("blob_group_read", True):
            raise ValueError("nginx cannot read the images; set BROKER_BLOB_GROUP_READ=true, too")
        return prefix

    @model_validator(mode="after")
    def _check_bucket(self) -> Self:
        bucket = self.bucket
        if bucket is None:
            return self
        if not bucket.name:
            raise ValueError("BROKER_BLOB_URL names no bucket: use s3://bucket/prefix, or set MINIO_BUCKET")
        if (bucket.access_key is None) != (bucket.secret_key is None):
            raise ValueError("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together: set both, or none for a role")
        if bucket.links == "public" and not bucket.public_base:
            raise ValueError("BROKER_BLOB_LINKS is public: set MINIO_PUBLIC_URL, at which the bucket can be read")
        return self

    @property
    def database(self) -> str:
        """URL of the database, which may contain a password."""
        if url := self.database_url.get_secret_value():
            return url
        return self._built_url() if self.postgres_host else f"sqlite:///{self.data_dir / 'broker.db'}"

    @property
    def is_database_built(self) -> bool:
        """True if the POSTGRES_… variables name the database, and not DATABASE_URL."""
        return bool(self.postgres_host) and not self.database_url.get_secret_value()

    def _built_url(self) -> str:
        """Return the URL that the POSTGRES_… variables stand for."""
        password = _reveal(self.postgres_password)
        login = quote(self.postgres_user, safe="") + (f":{quote(password, safe='')}" if password else "")
        name, host = quote(self.postgres_db, safe=""), self.postgres_host
        if host.startswith("/"):  # the folder of a socket
            return f"postgresql://{login}@/{name}?host={quote(host, safe='')}&port={self.postgres_port}"
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"postgresql://{login}@{bracketed}:{self.postgres_port}/{name}"

    @property
    def database_shown(self) -> str:
        """URL of the database without user, password and options."""
        if not self.shared:
            return self.database
        parts = urlsplit(self.database)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def shared(self) -> bool:
        """True if other machines may work on the same tasks."""
        return re.fullmatch(_POSTGRES, self.database) is not None

    @property
    def blob_folder(self) -> Path:
        """The folder of the images, or of the staging area of a bucket."""
        if self.blob_url.startswith("file:"):
            return Path(self.blob_url.removeprefix("file:"))
        return self.data_dir / "blobs"

    @property
    def bucket(self) -> Bucket | None:
        """The bucket of the images, or None for a folder."""
        match = _match_bucket(self.blob_url, self.s3_bucket, self.s3_endpoint)
        if match is None:
            return None
        return Bucket(
            name=match[1] or self.s3_bucket,
            prefix=match[2] or "",
            endpoint=self._with_scheme(self.s3_endpoint),
            region=self.s3_region,
            access_key=_reveal(self.s3_access_key),
            secret_key=_reveal(self.s3_secret_key),
            session_token=_reveal(self.s3_session_token),
            links=self.blob_links,
            public_base=self._with_scheme(self.s3_public_url),
        )

    def _with_scheme(self, address: str) -> str | None:
        """Add the scheme to a bare host; MinIO's variables have a flag for TLS instead."""
        if not address or "://" in address:
            return address or None
        return f"{'https' if self.s3_use_ssl else 'http'}://{address}"

    def explain_unused(self, present: Collection[str]) -> Iterator[str]:
        """Yield a sentence for variables that have no effect beside the others. present: those that are set."""
        if not self.postgres_host and not self.database_url.get_secret_value():
            parts = [f"POSTGRES_{part}" for part in ("PORT", "DB", "USER", "PASSWORD")]
            if unused := [name for name in parts if name in present]:
                yield f"{_are(unused)} not used: set POSTGRES_HOST, too, or DATABASE_URL={_DSN}"
        elif self.postgres_host and not self.is_database_built:
            yield "POSTGRES_HOST is not used: DATABASE_URL names the database; remove one of the two"
        if self.bucket is None:
            parts = [f"MINIO_{part}" for part in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY", "BUCKET", "PUBLIC_URL")]
            if unused := [name for name in parts if name in present]:
                cure = "set MINIO_ENDPOINT and MINIO_BUCKET, and no BROKER_BLOB_URL of a folder"
                yield f"{_are(unused)} not used: images are kept in {self.blob_folder}; {cure}"
        elif "MINIO_PUBLIC_URL" in present and self.blob_links != "public":
            yield "MINIO_PUBLIC_URL is not used: set BROKER_BLOB_LINKS=public to redirect callers to it"

    def with_folder(self, folder: Path) -> Self:
        """Return a copy that keeps everything in a folder, whatever the variables name."""
        places = {"database_url": SecretStr(""), "postgres_host": "", "blob_url": "", "s3_bucket": ""}
        return self.model_copy(update={"data_dir": folder, **places})


def _match_bucket(blob_url: str, name: str, endpoint: str) -> re.Match[str] | None:
    """Match the URL of a bucket. MinIO's variables name one, too: with both and without a URL, their bucket counts."""
    return re.fullmatch(_BUCKET, "s3:" if not blob_url and name and endpoint else blob_url)


def _are(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
