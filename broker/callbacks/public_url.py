"""The public URL of this broker: as configured, as a tunnel agent reports it, or none, and then results are polled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from broker.errors import EgressBlocked, SettingsError
from broker.net.hosts import is_private_host
from broker.net.url_policy import parse_url


@dataclass(frozen=True, kw_only=True)
class PublicUrl:
    """A base URL under which the broker may be reached."""

    url: str
    """Without a trailing slash."""
    source: Literal["configured", "ngrok", "cloudflared", "local"]
    """`local`: not public; the provider runs on this machine, too."""


@dataclass(kw_only=True)
class PublicAddress:
    """The URL in use, which the next order passes to its provider."""

    current: PublicUrl | None = None
    """None: the broker cannot be reached, and providers are polled."""
    since: float = 0.0
    """Orders sent from this time on carry the current URL; earlier ones may carry another."""

    @property
    def base(self) -> str | None:
        return self.current.url if self.current else None


def check_configured(text: str) -> str:
    """Return WEBHOOK_BASE_URL without a trailing slash, its path kept; raise `SettingsError` with the cure."""
    try:
        parsed = parse_url(text.strip())
    except EgressBlocked as error:
        raise _wrong_base_url(str(error)) from None
    if "?" in text or "#" in text:
        raise _wrong_base_url("the URL has a query or a fragment")
    if "/api/webhook/" in f"{parsed.target}/":
        raise _wrong_base_url("this is the URL for callbacks, which the broker derives itself")
    return parsed.url.rstrip("/")


def is_private_url(url: str) -> bool:
    """Return True where providers on the internet cannot reach the URL's host; without a name lookup."""
    return is_private_host((urlsplit(url).hostname or "").removesuffix("."))


def _wrong_base_url(problem: str) -> SettingsError:
    cure = "set it to the public URL of the broker, like https://broker.example.com, or leave it empty"
    return SettingsError(f"WEBHOOK_BASE_URL: {problem}; {cure}")
