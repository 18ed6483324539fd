"""Fields of an order: each wrong value has a sentence of its own, with the name as the API spells it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from starlette.datastructures import FormData

from broker.api.http.responses import ErrorField, ErrorResponse
from broker.api.native.params import read_form_order, read_json_order
from broker.errors import ApiError

PROMPT = {"prompt": "a banana"}
WRONG_JSON: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": 1}, "invalid_prompt", "prompt must be text."),
    ({"model": ["x"]}, "invalid_request", "model must be text."),
    ({"aspect_ratio": 1.5}, "invalid_request", "aspectRatio must be text."),
    ({"callbackUrl": "x" * 300_000}, "invalid_request", "callbackUrl is longer than 262,144 characters."),
    ({"n": "2"}, "invalid_request", "numberOfImages must be a whole number."),
    ({"number_of_images": 1.0}, "invalid_request", "numberOfImages must be a whole number."),
    ({"numberOfImages": 7}, "invalid_request", "numberOfImages must be from 1 to 6."),
    ({"steps": 0}, "invalid_request", "steps must be from 1 to 1000."),
    ({"seed": True}, "invalid_request", "seed must be a whole number."),
    ({"dryRun": 1}, "invalid_request", "dryRun must be true or false."),
    ({"n": 1, "numberOfImages": 2}, "invalid_request", "numberOfImages was given more than once: send one value."),
    ({"image": [""]}, "invalid_image", "images must not have empty entries."),
    ({"images": [1]}, "invalid_image", "images must be data URIs: send data:image/png;base64,<data>."),
    ({"imageUrls": {}}, "invalid_image", "imageUrls must be a list of web addresses."),
]


@pytest.mark.parametrize(("fields", "code", "sentence"), WRONG_JSON)
def test_wrong_value_is_named_in_a_sentence(fields: dict[str, Any], code: str, sentence: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_json_order({**PROMPT, **fields})
    assert (caught.value.code, caught.value.message) == (code, sentence)
    assert sentence.startswith(f"{caught.value.field} ")


def test_all_wrong_types_are_reported_at_once() -> None:
    with pytest.raises(ApiError) as caught:
        read_json_order({"prompt": 1, "steps": "many", "dryRun": "yes"})
    assert [one.field for one in caught.value.details] == ["prompt", "steps", "dryRun"]


def test_form_reads_written_numbers_and_booleans() -> None:
    params = read_form_order(FormData([("prompt", "x"), ("n", " 2 "), ("seed", ""), ("dry_run", "TRUE"), ("odd", "1")]))
    assert (params.number_of_images, params.seed, params.dry_run) == (2, None, True)
    assert params.ignored_fields(["steps"]) == ["steps", "odd"]


def test_response_that_leaves_its_schema_is_not_built() -> None:
    right: dict[str, Any] = {"success": False, "error": "A sentence.", "code": "not_found", "retryable": False}
    assert ErrorResponse(**right).to_document() == right
    assert ErrorResponse(**right, details=[ErrorField(field="a", message="A.")]).to_document()["details"]
    for wrong in ({"code": "no-such-code"}, {"success": True}, {"error": ""}, {"more": 1}):
        with pytest.raises(ValidationError):
            ErrorResponse(**{**right, **wrong})
