"""Callbacks of a job: what a dialect defines about them, and which of them are sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit, urlunsplit

from broker.sandbox.faults import TRY_AGAIN, Fault
from broker.sandbox.jobs import Job, JobView


@dataclass(frozen=True, kw_only=True)
class CallbackDelivery:
    """One callback to be signed."""

    id: str
    """The same for all its attempts."""
    job: Job
    body: bytes
    timestamp: int
    """Seconds since the epoch."""
    is_wrong: bool
    """True if the signature is to be a wrong one."""


class CallbackFormat(Protocol):
    """The callbacks of one dialect."""

    def build_body(self, view: JobView) -> Any:
        """Return the JSON body."""

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        """Return the headers that sign it; none if the provider does not sign."""


class NoCallbacks:
    """The callbacks of a provider without any, whose orders have no callback URL."""

    def build_body(self, view: JobView) -> Any:
        return None

    def sign(self, delivery: CallbackDelivery) -> Mapping[str, str]:
        return {}


@dataclass(frozen=True, kw_only=True)
class PlannedCallback:
    """A callback to send."""

    kind: str
    url: str
    view: JobView
    delay: float = 0.0
    """Seconds after the end of the job."""
    signature: Literal["valid", "none", "wrong"] = "valid"
    age: float = 0.0
    """Seconds of the signature's timestamp."""
    is_retried: bool = True


def plan_callbacks(view: JobView, evil_url: str) -> list[PlannedCallback]:
    """Return the callbacks of a finished job in the order of sending. evil_url: result of a forged callback."""
    faults, url = view.job.faults, view.job.order.callback_url
    if url is None:
        return []
    true = PlannedCallback(kind="true", url=url, view=view)
    call = replace(true, delay=faults.get(Fault.LATE, 0.0), age=faults.get(Fault.STALE, 0.0))
    if faults.keys() & {Fault.UNSIGNED, Fault.BADSIGN}:
        call = replace(call, signature="none" if Fault.UNSIGNED in faults else "wrong")
    is_lost = bool(faults.keys() & {Fault.SILENT_LOST, Fault.LOST})
    calls = [] if is_lost else [call] * int(faults.get(Fault.TWICE, 1))
    if calls and Fault.DISORDER in faults:
        calls += [
            replace(call, kind="generating", view=replace(view, stage="generating", urls=(), failure=None)),
            replace(call, kind="failure", view=replace(view, stage="fail", urls=(), failure=TRY_AGAIN)),
        ]
    if Fault.FORGED in faults:
        calls.insert(0, _forge_callback(true, evil_url))
    return calls


def _forge_callback(call: PlannedCallback, evil_url: str) -> PlannedCallback:
    """Return the callback of an attacker with a job id, but without token and key; it is sent once."""
    view = replace(call.view, stage="success", urls=(evil_url,), failure=None)
    url = urlunsplit(urlsplit(call.url)._replace(query=""))
    return replace(call, kind="forged", url=url, view=view, signature="none", is_retried=False)
