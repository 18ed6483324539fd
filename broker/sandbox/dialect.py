"""The contract of a dialect: what one provider's API looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.routing import BaseRoute

from broker.sandbox.callbacks import CallbackFormat, NoCallbacks
from broker.sandbox.engine import Options
from broker.sandbox.faults import FaultName
from broker.sandbox.orders import RejectedRequest
from broker.sandbox.service import JobService


@dataclass(frozen=True, kw_only=True)
class SandboxDialect:
    """One provider's API, as its emulator serves it."""

    name: str
    faults: Sequence[FaultName]
    """Those that it maps; a prompt with another one is rejected. The first that changes a download decides it."""
    build_routes: Callable[[JobService], Sequence[BaseRoute]]
    """Its endpoints; guarded by `JobService.guard` where they need a key."""
    respond_to_rejected: Callable[[RejectedRequest], Response]
    """Its error response; also for unknown paths and methods."""
    variables: Callable[[str, str], Mapping[str, str]]
    """(URL of the sandbox, API key) → the environment variables of a broker that uses it."""
    callbacks: Callable[[Options], CallbackFormat] = lambda _: NoCallbacks()
