"""The providers whose APIs the sandbox can serve: one package and one line each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.sandbox.dialect import Dialect
from broker.sandbox.dialects.gemini import GEMINI
from broker.sandbox.dialects.kie import KIE
from broker.sandbox.dialects.openrouter import OPENROUTER

_DIALECTS = (KIE, GEMINI, OPENROUTER)

DIALECTS: Final[Mapping[str, Dialect]] = {dialect.name: dialect for dialect in _DIALECTS}
