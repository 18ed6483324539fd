"""Absolute addresses in answers, for clients that follow them without knowing where they sent their request."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import HTTPConnection

_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


@dataclass(frozen=True, kw_only=True)
class AnswerAddresses:
    """Makes the addresses of one broker absolute."""

    public_base: Callable[[], str | None]
    """Our public URL; None without one."""

    def base_for(self, request: HTTPConnection) -> str:
        """Return where the client reaches us, without a trailing slash: our public URL, or where it sent the request.

        Only for an answer that no cache keeps: its sender chose the host. A proxy that ends TLS says so in
        `X-Forwarded-Proto`.
        """
        if public := self.public_base():
            return public
        hosts = request.headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 and _HOST.fullmatch(hosts[0]) else "localhost"
        is_tls = request.headers.get("x-forwarded-proto", "").strip().lower() == "https"
        return f"{'https' if is_tls else request.scope['scheme']}://{host}"
