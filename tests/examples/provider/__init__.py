"""The provider of docs/extending.md: a whole package, and the small server on its other side.

A provider that ships with the broker is a folder like this one in `broker/providers`, and a line in
`broker.providers.registry.PROVIDERS`.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from broker.providers.base import ProviderPackage
from tests.examples.provider.adapter import ExampleProvider
from tests.examples.provider.checks import CHECKS
from tests.examples.provider.settings import ExampleSettings
from tests.examples.provider.signature import configure_signature

EXAMPLE: Final = ProviderPackage(
    name="example",
    settings=ExampleSettings,
    factory=ExampleProvider,
    signature=configure_signature,
    checks=CHECKS,
    catalog=resources.files(__package__).joinpath("catalog.toml"),
)
