"""Our own addresses as references: images of earlier orders, and uploaded files, found without an HTTP request.

An address is ours if it has no host, our public URL, or the host by which the caller reached us:

    /uploads/images/<name>, /uploads/references/<name>      whoever knows the name may use the image, as it may get it
    /v1beta/files/<id>, /v1/files/<id>, /fal/files/<id>, /api/files/<id>      a file that the caller itself uploaded
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.errors import ApiError, EgressBlocked
from broker.net.url_policy import DEFAULT_PORTS, ParsedUrl, parse_url
from broker.ordering.files import FileService
from broker.orders import StoredReference
from storage.images import Images

OWN_PREFIX: Final = "/uploads/"
"""Begins the path of an image; base64 of an image never begins like this."""
_IMAGE: Final = re.compile(r"/uploads/(image|reference)s/([A-Za-z0-9_.-]{1,100})")
_FILE: Final = re.compile(r"/(?:v1beta|v1|fal|api)/files/([A-Za-z0-9-]{1,64})(?:/[^/]*)?")
_KINDS: Final = {"image": "result", "reference": "reference"}


@dataclass(frozen=True, kw_only=True)
class OwnImages:
    """Finds the images behind our own addresses."""

    images: Images
    files: FileService
    public_base: Callable[[], str | None]

    async def resolve(self, caller: str, url: str, host: str | None) -> StoredReference | None:
        """Return the image of an address; None if the address is not ours, or has something else.

        host: that by which the caller reached us, with its port. Raises `ApiError` if there is no such image, or no
        longer.
        """
        path = self._own_path(url, host)
        if path is None:
            return None
        if match := _IMAGE.fullmatch(path):
            image = await self.images.get_by_name(match[2])
            if image is None or image.kind != _KINDS[match[1]]:
                raise own_image_gone(path)
            return StoredReference(blob=image.blob, sha256=image.sha256, address=path)
        if match := _FILE.fullmatch(path):
            try:
                file = await self.files.get(caller, match[1])
            except ApiError as error:
                raise own_image_gone(path) from error
            return StoredReference(blob=file.blob, sha256=file.sha256, address=path)
        return None

    def _own_path(self, url: str, host: str | None) -> str | None:
        """Return the path below our base; None for an address of another host."""
        if url.startswith("/") and not url.startswith("//"):
            return _without_query(url)
        try:
            parsed = parse_url(url)
        except EgressBlocked:
            return None
        base, path = self.public_base(), _without_query(parsed.target)
        if base is not None and _is_same_host(parsed, public := parse_url(base)):
            prefix = public.target.rstrip("/")
            return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else None
        return path if host is not None and _is_host(parsed, host) else None


def own_image_gone(path: str) -> ApiError:
    return ApiError(
        "invalid_image",
        f"There is no image at {path}; it may have expired. Send the image itself, or upload it again.",
        field="imageUrls",
    )


def _without_query(target: str) -> str:
    return re.split(r"[?#]", target, maxsplit=1)[0]


def _is_same_host(one: ParsedUrl, other: ParsedUrl) -> bool:
    return (one.host, one.port) == (other.host, other.port)


def _is_host(url: ParsedUrl, host: str) -> bool:
    """Return whether a `Host` header names the host of a URL. Behind a proxy our own scheme is not known."""
    return any(
        url.authority == candidate.authority
        for scheme in DEFAULT_PORTS
        if (candidate := _read_host(scheme, host)) is not None
    )


def _read_host(scheme: str, host: str) -> ParsedUrl | None:
    try:
        return parse_url(f"{scheme}://{host}")
    except EgressBlocked:
        return None
