"""Formats of webhooks to callers: the body, and the headers that sign it, as the dialect of the order has them.

A format is one module in this folder and one line in `FORMATS`; the dialect names it in the origin of the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from broker.notifications.formats.base import FormatContext, WebhookFormat
from broker.notifications.formats.fal import FalFormat
from broker.notifications.formats.gemini_batch import GeminiBatchFormat
from broker.notifications.formats.kie import KieFormat
from broker.notifications.formats.native import NativeFormat
from broker.notifications.formats.replicate import ReplicateFormat

FORMATS: Final[Mapping[str, Callable[[FormatContext], WebhookFormat]]] = {
    "fal": FalFormat,
    "gemini_batch": GeminiBatchFormat,
    "native": NativeFormat,
    "kie": KieFormat,
    "replicate": ReplicateFormat,
}
ORIGIN_KEY: Final = "webhook_format"
"""Key in the origin of an order."""


def make_formats(context: FormatContext) -> dict[str, WebhookFormat]:
    return {name: make(context) for name, make in FORMATS.items()}
