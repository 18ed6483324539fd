"""Value types that settings classes share, and the base class of a package's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split_list(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def check_http_url(value: str) -> str:
    """Return the URL without blanks around it and a trailing slash. Raises ValueError, naming none of it."""
    value = value.strip()
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise ValueError("use an address like https://api.example.com, without user name, password or key in it")
    return value.rstrip("/")


def check_header_value(value: SecretStr | None) -> SecretStr | None:
    """Return a key that can be sent in a header. Raises ValueError, naming none of it."""
    text = value.get_secret_value() if value else ""
    if not all("\x21" <= char <= "\x7e" for char in text):
        raise ValueError("use the key as the provider shows it: visible ASCII characters, without blanks")
    return value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_list)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]
HttpUrl = Annotated[str, AfterValidator(check_http_url)]
ApiKey = Annotated[SecretStr | None, AfterValidator(check_header_value)]
BlobLinks = Literal["none", "presigned", "public"]

SETTINGS_CONFIG: Final = SettingsConfigDict(
    env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True, case_sensitive=True
)


def env_names(name: str, *others: str) -> Any:
    """Return the names of a variable; the first one that is set wins, and the first is used in messages."""
    return AliasChoices(name, *others)


class PackageSettings(BaseSettings):
    """The variables of one provider or dialect package. Each variable has one owner."""

    model_config = SETTINGS_CONFIG

    @property
    def is_configured(self) -> bool:
        """True if an operator set what the package needs to work."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A place in an S3-compatible store."""

    name: str
    prefix: str
    endpoint: str | None
    """None: AWS."""
    region: str
    access_key: SecretStr | None
    """None, like the other two: the credentials of the machine's role."""
    secret_key: SecretStr | None
    session_token: SecretStr | None
    links: BlobLinks
    """How callers are redirected to the store for results, if at all."""
    public_base: str | None
    """URL at which the bucket can be read without credentials."""
