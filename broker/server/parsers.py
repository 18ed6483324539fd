"""Choice of the HTTP parser."""

from __future__ import annotations

from importlib import import_module

from broker.errors import SettingsError
from broker.server.protocol import GuardedProtocol


def protocol_class(parser: str | None) -> type[GuardedProtocol]:
    """Return the protocol for the value of BROKER_HTTP; httptools by default, h11 where that is not installed.

    Raises `SettingsError` if the parser was asked for and is not there.
    """
    if parser != "h11":
        try:
            fast: type[GuardedProtocol] = import_module("broker.server.httptools_protocol").GuardedHttpTools
        except ImportError as error:
            if parser is not None:
                raise SettingsError("BROKER_HTTP: httptools cannot be imported; install it, or use h11") from error
        else:
            return fast
    portable: type[GuardedProtocol] = import_module("broker.server.h11_protocol").GuardedH11
    return portable
