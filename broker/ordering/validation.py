"""Validation of the parameters of an order request against its model."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from broker.catalog import MODES, Catalog, Model, list_names, quote_input
from broker.errors import ApiError, FieldError
from broker.orders import Mode, OutputFormat

FieldErrors = Iterator[tuple[str, FieldError]]
"""Error codes, each with its field and message."""

ALLOWED_CONTROLS: Final = frozenset("\t\n\r")
"""Control characters that occur in written text."""


@dataclass(frozen=True, kw_only=True)
class ValidatedParams:
    """Parameters that their model accepts, spelt as in an order."""

    model: Model
    mode: Mode
    aspect_ratio: str | None
    resolution: str | None
    output_format: OutputFormat | None


def validate_params(
    catalog: Catalog,
    *,
    prompt: str,
    model: str | None = None,
    mode: str | None = None,
    aspect_ratio: str | None = None,
    resolution: str | None = None,
    output_format: str | None = None,
    references: int = 0,
) -> ValidatedParams:
    """Validate parameters; an empty optional value counts as absent. references: number of images.

    Raises one `ApiError` with everything that is wrong in `details`; code, message and field are the first one's.
    """
    known, unknown_model = _resolve_model(catalog, model)
    values = {
        "aspectRatio": aspect_ratio or None,
        "resolution": resolution.upper() if resolution else None,
        "outputFormat": {"jpeg": "jpg"}.get(output_format, output_format) if output_format else None,
    }
    errors = [
        *_check_prompt(prompt, known),
        *unknown_model,
        *_check_mode(mode or None, references),
        *_check_references(references, known),
        *_check_choices(values, known),
    ]
    if errors:
        raise _combine(errors)
    return ValidatedParams(
        model=known,
        mode="image-to-image" if references else "text-to-image",
        aspect_ratio=values["aspectRatio"],
        resolution=values["resolution"],
        output_format=cast("OutputFormat | None", values["outputFormat"]),
    )


def _resolve_model(catalog: Catalog, name: str | None) -> tuple[Model, list[tuple[str, FieldError]]]:
    """Return the model; for an unknown one the default and an error, so that the other parameters are checked too."""
    try:
        return catalog.resolve(name), []
    except ApiError as error:
        return catalog.default, [(error.code, FieldError(field="model", message=error.message))]


def _check_prompt(prompt: str, model: Model) -> FieldErrors:
    """Check a prompt. Its length counts characters, not bytes; invisible characters alone are not a prompt."""
    if not any(char.isprintable() and not char.isspace() for char in prompt):
        yield _field_error("invalid_prompt", "prompt", "The prompt is empty: say what the image should show.")
    if len(prompt) > model.prompt_limit:
        text = f"The prompt has {len(prompt)} characters; {model.name} takes at most {model.prompt_limit}."
        yield _field_error("invalid_prompt", "prompt", text)
    strange = next((char for char in prompt if _is_forbidden(char)), None)
    if strange is not None:
        text = f"The prompt has a character that no text has (U+{ord(strange):04X}): remove it."
        yield _field_error("invalid_prompt", "prompt", text)


def _check_mode(mode: str | None, references: int) -> FieldErrors:
    if mode is not None and mode not in MODES:
        text = f"Unknown mode {quote_input(mode)}. Accepted: {list_names(MODES)}."
        yield _field_error("unsupported_parameter", "mode", text)
    if mode == "image-to-image" and not references:
        yield _field_error("invalid_request", "image", "image-to-image needs at least one image: add one.")
    if mode == "text-to-image" and references:
        text = "text-to-image takes no images: leave them out, or ask for image-to-image."
        yield _field_error("invalid_request", "mode", text)


def _check_references(references: int, model: Model) -> FieldErrors:
    if references > model.max_references:
        text = f"{references} images are too many; {model.name} takes at most {model.max_references}."
        yield _field_error("too_many_images", "image", text)


def _check_choices(values: Mapping[str, str | None], model: Model) -> FieldErrors:
    accepted: dict[str, tuple[str, ...]] = {
        "aspectRatio": model.aspect_ratios,
        "resolution": model.resolutions,
        "outputFormat": model.output_formats,
    }
    for name, value in values.items():
        if value is not None and value not in accepted[name]:
            text = f"{model.name} has no {name} {quote_input(value)}. Accepted: {list_names(accepted[name])}."
            yield _field_error("unsupported_parameter", name, text)


def _field_error(code: str, name: str, message: str) -> tuple[str, FieldError]:
    return code, FieldError(field=name, message=message)


def _combine(errors: Sequence[tuple[str, FieldError]]) -> ApiError:
    code, first = errors[0]
    return ApiError(code, first.message, field=first.field, details=[error for _, error in errors])


def _is_forbidden(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cs"} and char not in ALLOWED_CONTROLS
