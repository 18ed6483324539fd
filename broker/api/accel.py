"""`X-Accel-Redirect`: nginx in front of the broker sends the file of an image, and the broker only its headers.

nginx names its internal location in a header of each request, in place of any that the client sent (docs/deploying.md
has its configuration). The value is compared with BROKER_ACCEL_PREFIX and used for nothing else: the path in a response
is made of the setting and of the name of the stored blob. A request that comes another way, directly or through a
tunnel, gets the bytes. The name of the location is a secret, because the path contains the id of a task, and the id
gives access to the task.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from broker.api.http.auth import is_from_own_proxy
from broker.api.http.identity import header_table
from storage.blobs.store import BlobMissing, BlobStore

PREFIX_HEADER: Final = "x-accel-prefix"

_NGINX_CONDITIONS: Final = ("if-match", "if-unmodified-since")
"""nginx checks these before it has the ETag of the response, and would answer 412; the broker ignores them."""


@dataclass(frozen=True, kw_only=True)
class AccelRedirects:
    """The rule by which nginx sends a blob. prefix: the internal location of nginx; empty if there is none."""

    blobs: BlobStore
    prefix: str

    def find_uri(self, request: Request, blob: str) -> str | None:
        """Return the URI of a blob inside nginx; None if the broker has to send the bytes.

        Does not check that the blob exists: nginx asks again, without its header, for a file that it cannot open.
        """
        if not self.prefix or request.method != "GET" or not self._is_from_nginx(request):
            return None
        try:
            path = self.blobs.path_below_root(blob)
        except BlobMissing:
            return None
        return None if path is None else f"{self.prefix}{path}"

    def _is_from_nginx(self, request: Request) -> bool:
        """Return whether a proxy of our own network has the location, and would answer like the broker."""
        headers = header_table(request.scope)
        sent = headers.get(PREFIX_HEADER, ())
        return (
            len(sent) == 1
            and hmac.compare_digest(sent[0].encode("latin-1"), self.prefix.encode("latin-1"))
            and is_from_own_proxy(request)
            and not any(name in headers for name in _NGINX_CONDITIONS)
        )
