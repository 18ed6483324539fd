"""The parameter of docs/extending.md: `guidance`, added to the example dialect and to the example provider.

A parameter that ships with the broker is one line in the dialect that reads it, and one in each catalog that sends it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from typing import Final

from broker.api.http.endpoint import Dialect
from broker.providers.base import ProviderPackage
from broker.services import Services
from tests.examples.dialect import example_dialect
from tests.examples.parameter.schemas import GuidedRequest
from tests.examples.provider import EXAMPLE

GUIDED_EXAMPLE: Final[ProviderPackage] = replace(EXAMPLE, catalog=resources.files(__package__).joinpath("catalog.toml"))


def guided_dialect(services: Services) -> Dialect:
    """Return the example dialect with the parameter."""
    return example_dialect(services, GuidedRequest)
