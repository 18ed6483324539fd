"""Apps of fal: which model an app is, and which part of its address is not the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.catalog import Catalog
from broker.errors import ApiError

OWNERS: Final = ("fal-ai", "google")
EDIT: Final = "edit"
STREAM: Final = "stream"
_SPELLINGS: Final = {"gemini-25-flash-image": "gemini-2.5-flash-image"}
"""Names that only fal has → a name of the catalog."""


@dataclass(frozen=True, kw_only=True)
class ModelApp:
    """An app that makes images with one model."""

    name: str
    """`{owner}/{alias}`, under which its requests are found."""
    model: str
    """A name or alias of the catalog."""
    is_edit: bool
    """It needs images."""


def find_app(path: str, catalog: Catalog) -> ModelApp:
    """Return the app at a path like `fal-ai/nano-banana/edit`. Raises `ApiError("not_found")`."""
    owner, _, rest = path.strip("/").partition("/")
    alias, _, sub_path = rest.partition("/")
    model = _SPELLINGS.get(alias, alias)
    if owner in OWNERS and alias and sub_path in {"", EDIT}:
        try:
            catalog.resolve(model)
        except ApiError:
            pass
        else:
            return ModelApp(name=f"{owner}/{alias}", model=model, is_edit=sub_path == EDIT)
    known = ", ".join(f"fal-ai/{one.name}" for one in catalog.models)
    raise ApiError("not_found", f"There is no such app here. Apps, each also with /edit: {known}.", field="app")


def split_stream(path: str) -> tuple[str, bool]:
    """Return the path of an app without `/stream` at its end, and whether it was there."""
    shortened = path.rstrip("/").removesuffix(f"/{STREAM}")
    return shortened, shortened != path.rstrip("/")
