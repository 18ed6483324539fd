"""Faults of callbacks: each changes the list of callbacks that a finished job sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from broker.sandbox.faults import TRY_AGAIN, Fault, Faults, Record, apply_envelope_faults, select_faults

SignatureKind = Literal["valid", "none", "wrong"]


@dataclass(frozen=True, kw_only=True)
class PlannedCallback:
    """A callback to send."""

    kind: str
    url: str
    body: Record
    delay: float = 0.0
    """Seconds after the end of the job."""
    signature: SignatureKind = "valid"
    age: float = 0.0
    """Seconds of the signature's timestamp."""
    persistent: bool = True


PlannedCallbacks = tuple[PlannedCallback, ...]

CallbackFault = Callable[[float, PlannedCallbacks, PlannedCallback], PlannedCallbacks]
"""(VALUE, the callbacks planned so far, the callback of an attacker) → the callbacks to send"""


def _change_each(
    change: Callable[[float, PlannedCallback], PlannedCallback],
) -> Callable[[float, PlannedCallbacks, PlannedCallback], PlannedCallbacks]:
    return lambda value, calls, _attack: tuple(change(value, call) for call in calls)


def _send_none(_value: float, _calls: PlannedCallbacks, _attack: PlannedCallback) -> PlannedCallbacks:
    return ()


def _changed_data(call: PlannedCallback, **changes: Any) -> Record:
    return {**call.body, "data": {**call.body["data"], **changes}}


def _add_disorder(_value: float, calls: PlannedCallbacks, _attack: PlannedCallback) -> PlannedCallbacks:
    true = calls[-1:]
    stale = [
        replace(call, kind="generating", body=_changed_data(call, state="generating", resultJson=None)) for call in true
    ]
    failed = {"state": "fail", "resultJson": None, "failCode": TRY_AGAIN.code, "failMsg": TRY_AGAIN.text}
    fail = [replace(call, kind="failure", body={**_changed_data(call, **failed), "code": 501}) for call in true]
    return (*calls, *stale, *fail)


def _forge_callback(call: PlannedCallback, evil: str) -> PlannedCallback:
    """Return the callback of an attacker with a task id, but without token and key; it is sent once."""
    body = {**_changed_data(call, state="success", resultJson=json.dumps({"resultUrls": [evil]})), "code": 200}
    url = urlunsplit(urlsplit(call.url)._replace(query=""))
    return replace(call, kind="forged", url=url, body=body, delay=0.0, signature="none", persistent=False)


def _move_task_id(_value: float, call: PlannedCallback) -> PlannedCallback:
    data = {key: value for key, value in call.body["data"].items() if key != "taskId"}
    return replace(call, body={**call.body, "taskId": call.body["data"]["taskId"], "data": data})


def _rename_task_id(_value: float, call: PlannedCallback) -> PlannedCallback:
    data = {("task_id" if key == "taskId" else key): value for key, value in call.body["data"].items()}
    return replace(call, body={**call.body, "data": data})


def _contradict_state(_value: float, call: PlannedCallback) -> PlannedCallback:
    return replace(call, body={**call.body, "code": 501 if call.body["code"] == 200 else 200})


CALLBACK_FAULTS: dict[Fault, CallbackFault] = {
    Fault.SILENT_LOST: _send_none,
    Fault.LOST: _send_none,
    Fault.LATE: _change_each(lambda value, call: replace(call, delay=value)),
    Fault.TWICE: lambda value, calls, _attack: calls * int(value),
    Fault.DISORDER: _add_disorder,
    Fault.FORGED: lambda _value, calls, attack: (attack, *calls),
    Fault.UNSIGNED: _change_each(lambda _value, call: replace(call, signature="none")),
    Fault.BADSIGN: _change_each(lambda _value, call: replace(call, signature="wrong")),
    Fault.STALE: _change_each(lambda value, call: replace(call, age=value)),
    Fault.CONTRADICTION: _change_each(_contradict_state),
    Fault.TOPLEVEL: _change_each(_move_task_id),
    Fault.SNAKE: _change_each(_rename_task_id),
}


def plan_callbacks(true: PlannedCallback, faults: Faults, evil: str) -> PlannedCallbacks:
    """Return the callbacks of a finished job in the order of sending."""
    calls: PlannedCallbacks = (true,)
    for fault in select_faults(faults, CALLBACK_FAULTS):
        calls = CALLBACK_FAULTS[fault](faults[fault], calls, _forge_callback(true, evil))
    return tuple(replace(call, body=apply_envelope_faults(call.body, faults)) for call in calls)
