"""The names of models: the catalog's, those of OpenAI that stand for one of them, and their list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.catalog import Catalog, Model
from broker.errors import ApiError, SettingsError

_OPENAI_NAME: Final = re.compile(r"(openai/)?(gpt|chatgpt|dall-e)-.*", re.IGNORECASE)
REFUSE: Final = "none"
"""Value of BROKER_OPENAI_MODEL."""


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """Finds the model that a request means."""

    catalog: Catalog
    default: Model
    """For a request without a model."""
    stand_in: Model | None
    """For the names of OpenAI's models; None: they are refused."""

    @classmethod
    def from_setting(cls, setting: str, catalog: Catalog, served: Sequence[Model]) -> ModelNames:
        """setting: BROKER_OPENAI_MODEL. Raises `SettingsError` for a name that the catalog does not have."""
        first = catalog.default if catalog.default in served or not served else served[0]
        if setting == REFUSE:
            return cls(catalog=catalog, default=first, stand_in=None)
        try:
            chosen = catalog.resolve(setting) if setting else first
        except ApiError as error:
            raise SettingsError(f"BROKER_OPENAI_MODEL: {error.message} Or use {REFUSE}.") from error
        return cls(catalog=catalog, default=chosen, stand_in=chosen)

    def find_model(self, name: str | None) -> tuple[str, Model]:
        """Return the name to order by, and its model. Raises `ApiError` for one that is unknown or refused."""
        if not name or not name.strip():
            return self.default.name, self.default
        if _OPENAI_NAME.fullmatch(name.strip()) is None:
            return name, self.catalog.resolve(name)
        if self.stand_in is None:
            raise ApiError(
                "unsupported_parameter",
                "Models of OpenAI are not served here (BROKER_OPENAI_MODEL=none): choose one of GET /v1/models.",
                field="model",
            )
        return self.stand_in.name, self.stand_in


def list_models(models: Sequence[Model]) -> Mapping[str, Any]:
    return {"object": "list", "data": [describe_model(model, model.name) for model in models]}


def describe_model(_: Model, name: str) -> Mapping[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "google"}
