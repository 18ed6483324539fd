"""Value types that settings classes share, and the base class of a package's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

T = TypeVar("T")

SETTINGS_CONFIG: Final = SettingsConfigDict(
    env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True, case_sensitive=True
)
HOST_AND_PORT: Final = r"(?:[A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
"""Pattern of `host` and `host:port`."""


def env(*names: str, default: Any = None, **limits: Any) -> Any:
    """Return the field of a variable. names: the first that is set wins, and the first is used in messages."""
    return Field(default, validation_alias=AliasChoices(*names), **limits)


def matching(pattern: str, cure: str) -> AfterValidator:
    """Accept an empty value, and text that matches as a whole. The error is the cure; it quotes nothing."""

    def check(value: T) -> T:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text and not re.fullmatch(pattern, str(text)):
            raise ValueError(cure)
        return value

    return AfterValidator(check)


def http_url(cure: str, *, other: str | None = None) -> AfterValidator:
    """Accept an http(s) URL without user and password; remove blanks around it and a trailing slash.

    other: pattern of further accepted values, "" for the empty one. The error is the cure; it quotes nothing.
    """

    def check(value: str) -> str:
        if other is not None and re.fullmatch(other, value):
            return value
        parts = urlsplit(value.strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise ValueError(cure)
        return value.strip().rstrip("/")

    return AfterValidator(check)


def _split_list(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


_URL_CURE: Final = "use an address like https://api.example.com, without user name, password or key in it"
_API_KEY_CURE: Final = "use the key as the provider shows it: visible ASCII characters, without blanks"

CommaSeparated = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split_list)]
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400)]
HttpUrl = Annotated[str, http_url(_URL_CURE)]
ApiKeys = CommaSeparated[Annotated[SecretStr, matching(r"[\x21-\x7e]+", _API_KEY_CURE)]]
"""The keys of one provider: one, or a pool."""


class PackageSettings(BaseSettings):
    """The variables of one provider or dialect package. Each variable has one owner."""

    model_config = SETTINGS_CONFIG
    other_names: ClassVar[Mapping[str, str]] = {}
    """Names that others use for its variables, see `broker.settings.other_names`."""

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        """The keys of a provider, the preferred one first; empty for a package that needs none."""
        return ()

    @property
    def is_configured(self) -> bool:
        """True if an operator set what the package needs to work."""
        return bool(self.keys)
