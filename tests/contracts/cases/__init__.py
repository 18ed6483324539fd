"""Every provider of the contract suite: one module each, and those of `tests.contracts.providers`."""

from __future__ import annotations

from tests.contracts.cases.fal import FAL
from tests.contracts.cases.nanobananaapi import NANOBANANAAPI
from tests.contracts.cases.replicate import REPLICATE
from tests.contracts.cases.wavespeed import WAVESPEED
from tests.contracts.providers import EXAMPLE_CASE, KIE, LEGACY

CASES = (
    KIE,
    LEGACY,
    EXAMPLE_CASE,
    REPLICATE,
    WAVESPEED,
    NANOBANANAAPI,
    FAL,
)
