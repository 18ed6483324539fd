"""Which adapter an address in the settings means. Old deployments have several spellings for the same thing."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import urlsplit

Adapter = Literal["kie", "legacy"]

_KIE_HOSTS: Final = (".kie.ai", ".erweima.ai")
_KIE_PATHS: Final = ("/api/v1/jobs/createTask", "/api/v1/playground/createTask", "/api/v1/jobs", "/api/v1")
_LEGACY_PATH: Final = "/nano-banana"


def adapter_for(api_url: str) -> tuple[Adapter, str]:
    """The adapter for `NANO_BANANA_API_URL`, and the base address it wants (no slash at the end, no query).

    kie.ai's own hosts are kie.ai whatever the path (`/nano-banana` there is an address of old documents). Another host
    whose path ends in `/nano-banana` speaks the legacy dialect; any other is a relay of kie.ai, perhaps below
    a path of its own. ValueError for what is no http(s) address.
    """
    parts = urlsplit(api_url.strip())
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("an address like https://api.kie.ai is needed")
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    if f".{parts.hostname}".endswith(_KIE_HOSTS):
        return "kie", origin
    if path.removesuffix("/generate").endswith(_LEGACY_PATH):
        return "legacy", origin + path.removesuffix("/generate")
    return "kie", origin + _without_verb(path)


def _without_verb(path: str) -> str:
    known = next((known for known in _KIE_PATHS if path.endswith(known)), "")
    return path.removesuffix(known).rstrip("/")
