"""Models under their names at Replicate, and the one version that each of them has."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.api.dialects.replicate.schemas import ReplicateModelData, ReplicateVersion
from broker.api.shared.dialect import find_served
from broker.catalog import Catalog, Model, quote_text
from broker.clock import iso
from broker.errors import ApiError
from broker.notifications.formats.replicate import UNKNOWN_VERSION

OWNER: Final = "google"
COG_VERSION: Final = "0.3.9"
"""The oldest whose schemas say which outputs are iterators; none of ours is."""

_REFERENCE: Final = re.compile(r"([^/:]{1,100})/([^/:]{1,100})(?::(.{1,100}))?")
"""Kept and shown with the prediction, so it is short."""
_VERSION_ID: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ChosenModel:
    """The model of a request."""

    name: str
    """Canonical."""
    shown_name: str
    """As the client named it, with an owner."""
    version: str


@dataclass(frozen=True, kw_only=True)
class ReplicateModels:
    served: Sequence[Model]
    """Those that a provider in use serves."""
    catalog: Catalog
    most_references: Callable[[Model], int]

    def make_version(self, model: Model) -> ReplicateVersion:
        """Return the only version of a model."""
        return _make_version(model, self.most_references(model))

    # -- what a request names

    def choose_model(self, owner: str, name: str, version: str | None = None) -> ChosenModel:
        """Return a model by owner and name; an owner that is not known does not count.

        Raises `ApiError("unsupported_parameter")`.
        """
        try:
            model = self.catalog.resolve(f"{owner}/{name}")
        except ApiError:
            model = self.catalog.resolve(name)
        return ChosenModel(name=model.name, shown_name=f"{owner}/{name}", version=version or UNKNOWN_VERSION)

    def choose_version(self, text: str) -> ChosenModel:
        """Return the model of `owner/name`, `owner/name:version`, a model's name, or the id of one of our versions.

        An id that is not known could be that of any model: it is an error, so that no other model is paid for.
        """
        if match := _REFERENCE.fullmatch(text):
            return self.choose_model(match[1], match[2], match[3])
        if not _VERSION_ID.fullmatch(text.lower()):
            return self.choose_model(OWNER, text)
        for model in self.catalog.models:
            if version_id(model) == text.lower():
                return ChosenModel(name=model.name, shown_name=f"{OWNER}/{model.name}", version=version_id(model))
        raise ApiError(
            "unsupported_parameter",
            f"Version {quote_text(text)} is not known here, and so neither is its model: name the model, like "
            f'"{OWNER}/{self.catalog.default.name}".',
            field="version",
        )

    # -- what is shown of them

    def get_model(self, owner: str, name: str) -> Model:
        """Return a served model. Raises `ApiError("not_found")`."""
        try:
            return find_served(self.served, self.catalog, f"{owner}/{name}")
        except ApiError:
            return find_served(self.served, self.catalog, name)

    def model_document(self, model: Model, name: str) -> dict[str, Any]:
        """Return the model as Replicate shows it; nothing if it was not asked for by owner and name."""
        match = _REFERENCE.fullmatch(name)
        if match is None or match[1] == "models":
            return {}
        return _model_data(model, match[1], match[2], self.make_version(model)).to_document()

    def list_document(self, models: Sequence[Model]) -> dict[str, Any]:
        results = [_model_data(model, OWNER, model.name, None).to_document() for model in models]
        return {"next": None, "previous": None, "results": results}


def version_id(model: Model) -> str:
    return hashlib.sha256(f"{OWNER}/{model.name}".encode()).hexdigest()


def _make_version(model: Model, most_references: int) -> ReplicateVersion:
    """Return the only version of a model; when its vendor made it is not known.

    most_references: how many images a provider in use takes.
    """
    return ReplicateVersion(
        id=version_id(model),
        created_at=iso(0.0),
        cog_version=COG_VERSION,
        openapi_schema=_schema_of(model, most_references),
    )


def _model_data(model: Model, owner: str, name: str, version: ReplicateVersion | None) -> ReplicateModelData:
    return ReplicateModelData(
        url=f"https://replicate.com/{owner}/{name}",
        owner=owner,
        name=name,
        description=model.title,
        visibility="public",
        github_url=None,
        paper_url=None,
        license_url=None,
        run_count=0,
        cover_image_url=None,
        default_example=None,
        latest_version=version,
    )


def _schema_of(model: Model, most_references: int) -> dict[str, Any]:
    ratios = [ratio for ratio in model.aspect_ratios if ratio != "auto"]
    properties = {
        "prompt": {"type": "string", "title": "Prompt", "maxLength": model.prompt_limit, "x-order": 0},
        "image_input": {
            "type": "array",
            "items": {"type": "string", "format": "uri"},
            "maxItems": most_references,
            "title": "Image Input",
            "default": [],
            "x-order": 1,
        },
        "aspect_ratio": {"type": "string", "enum": ["match_input_image", *ratios], "x-order": 2},
        "resolution": {"type": "string", "enum": list(model.resolutions), "x-order": 3},
        "output_format": {"type": "string", "enum": list(model.output_formats), "x-order": 4},
    }
    schemas = {
        "Input": {"type": "object", "title": "Input", "required": ["prompt"], "properties": properties},
        "Output": {"type": "string", "title": "Output", "format": "uri"},
    }
    return {"openapi": "3.0.2", "info": {"title": model.title, "version": "1"}, "components": {"schemas": schemas}}
