"""The order of a job as every dialect describes it, and the rejection of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

ImageFormat = Literal["png", "jpeg", "webp"]


class RejectedRequest(Exception):
    """A request without effect, with the code, the message and the headers of its response.

    code: in the numbers of HTTP. status: the HTTP status where it is prescribed; None: the dialect's for the code.
    """

    def __init__(
        self, code: int, msg: str, *, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(msg)
        self.code, self.msg, self.status, self.headers = code, msg, status, headers


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """A validated request; JSON values only, because the journal keeps it."""

    prompt: str
    sizes: tuple[tuple[int, int], ...]
    """Width and height of the image. Several where the first reference decides: the size with the nearest ratio, and
    without a reference the first."""
    image_format: ImageFormat
    price: float
    """Of all its images, in the provider's unit."""
    count: int = 1
    """Number of images."""
    seed: int | None = None
    references: tuple[str, ...] = ()
    """http(s) URLs, data URIs, or what `JobService.store_file` returned."""
    callback_url: str | None = None

    def pick_size(self, reference: tuple[int, int] | None) -> tuple[int, int]:
        """Return the size of the image; reference: that of the first reference image."""
        if reference is None:
            return self.sizes[0]
        wanted = reference[0] / reference[1]
        return min(self.sizes, key=lambda size: abs(size[0] / size[1] - wanted))


def require(fine: bool, msg: str, code: int = 422) -> None:
    """Raise `RejectedRequest` unless a condition holds."""
    if not fine:
        raise RejectedRequest(code, msg)


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of the choices."""
    require(value in choices, f"{name} is not within the range of allowed options")
    return str(value)


def is_http_url(url: Any) -> bool:
    """Return True for an absolute http or https URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except (ValueError, TypeError, AttributeError):
        return False
