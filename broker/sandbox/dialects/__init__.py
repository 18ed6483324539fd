"""The providers whose APIs the sandbox can serve: one package and one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.sandbox.dialect import SandboxDialect
from broker.sandbox.dialects.fal import FAL
from broker.sandbox.dialects.gemini import GEMINI
from broker.sandbox.dialects.kie import KIE
from broker.sandbox.dialects.nanobananaapi import NANOBANANAAPI
from broker.sandbox.dialects.openrouter import OPENROUTER
from broker.sandbox.dialects.replicate import REPLICATE
from broker.sandbox.dialects.wavespeed import WAVESPEED

_DIALECTS = (
    KIE,
    GEMINI,
    FAL,
    REPLICATE,
    WAVESPEED,
    OPENROUTER,
    NANOBANANAAPI,
)

DIALECTS: Final[Mapping[str, SandboxDialect]] = {dialect.name: dialect for dialect in _DIALECTS}
