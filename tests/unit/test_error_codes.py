"""Classification of every known provider error; each row cites its source."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.errors import TASK_CODES
from broker.net.api_client import HttpResponse
from broker.providers import error_codes
from broker.providers.kie.errors import ERRORS
from broker.providers.parsing import ParsedResponse
from broker.providers.responses import ProviderResponse, Reports
from broker.reports import Failed

REPORTS = Reports(name="kie", errors=ERRORS, secret="key-of-the-test")
SENSITIVE = "The input or output was flagged as sensitive. Please try again with different inputs."
GEMINI = "Gemini could not generate an image with the given prompt. Please try again with a different prompt."

# -- numbers and words, as (number, words, code, retryable, billed); sections are those of the facts about providers
KNOWN_ERRORS: dict[str, list[tuple[int | None, str, str, bool, str | None]]] = {
    "kie 1.1: access": [
        (401, "You do not have access permissions", "provider_auth", False, "no"),
        (401, "Unauthorized", "provider_auth", False, "no"),
        (433, "", "provider_credits", False, "no"),
    ],
    "kie 1.2: codes": [
        (400, "taskId parameter is required", "provider_rejected", False, None),
        (402, "Insufficient credits", "provider_credits", False, "no"),
        (403, "", "provider_auth", False, "no"),
        (404, "Task not found", "provider_rejected", False, None),
        (404, "", "provider_rejected", False, None),
        (408, "", "provider_error", True, None),
        (413, "", "provider_rejected", False, None),
        (422, "model name not supported", "provider_rejected", False, None),
        (422, "recordInfo is null", "provider_rejected", False, None),
        (429, "Rate limit exceeded", "provider_rate_limited", True, "no"),
        (451, "", "provider_rejected", False, None),
        (455, "", "provider_unavailable", True, None),
        (500, "", "provider_error", True, None),
        (501, "", "provider_error", True, None),
        (505, "", "provider_rejected", False, None),
        (531, "", "provider_error", True, "no"),
        (405, "", "provider_rejected", False, None),
    ],
    "kie 1.4: real failures": [
        (500, GEMINI, "no_image", False, None),
        (
            500,
            "Failed to create task: image_size is not within the range of allowed options",
            "provider_rejected",
            False,
            None,
        ),
        (500, "Internal server error", "provider_error", True, None),
        (500, "Internal Error, Please try again later.", "provider_error", True, None),
        (500, SENSITIVE, "safety_input", False, None),
        (501, "Playground task failed.", "provider_error", True, None),
        (500, "sensitive", "safety_input", False, None),
        (500, "flagged", "safety_input", False, None),
        (400, "against our policy", "safety_input", False, None),
        (400, "moderation", "safety_input", False, None),
        (501, "NSFW", "safety_input", False, None),
        (501, "prohibited", "safety_input", False, None),
        (501, "The generated image was flagged as NSFW", "safety_output", False, None),
    ],
    "nanobananaapi 2": [
        (500, "Server exception, please check the parameters and try again", "provider_rejected", False, None),
        (400, "content policy", "safety_input", False, None),
        (501, "generation failed", "provider_error", True, None),
    ],
    "Replicate 3": [
        (None, f"{SENSITIVE} (E005)", "safety_input", False, None),
        (None, f"{SENSITIVE} (E005) (abc123)", "safety_input", False, None),
        (
            None,
            "Service is currently unavailable due to high demand. Please try again later. (E003)",
            "provider_unavailable",
            True,
            None,
        ),
        (
            None,
            "Service is temporarily unavailable. Please try again later. (E004)",
            "provider_unavailable",
            True,
            None,
        ),
        (
            None,
            "Service is currently unavailable due to high demand. Please try again later.",
            "provider_unavailable",
            True,
            None,
        ),
        (403, "User is locked. Reason: Exhausted balance. Top up your balance.", "provider_auth", False, "no"),
        (None, "User is locked. Reason: Exhausted balance. Top up your balance.", "provider_credits", False, None),
        (None, "out of credits (E001)", "provider_credits", False, None),
        (None, "the key is bad (E002)", "provider_auth", False, None),
        (429, "Request was throttled. Your rate limit resets in ~30s.", "provider_rate_limited", True, "no"),
        (None, "Request was throttled. Your rate limit resets in ~30s.", "provider_rate_limited", True, None),
    ],
    "fal 4": [
        (422, GEMINI, "no_image", False, None),
        (None, "content_policy_violation", "safety_input", False, None),
        (422, "the request ended in file_download_error", "provider_rejected", False, None),
    ],
    "Gemini 5": [
        (503, "The model is overloaded", "provider_unavailable", True, None),
        (500, "The model is overloaded", "provider_unavailable", True, None),
        (503, "", "provider_unavailable", True, None),
        (504, "", "provider_error", True, None),
        (
            400,
            "Image part is missing a thought_signature in content position 1, part position 2",
            "provider_rejected",
            False,
            None,
        ),
        (None, "API key not valid. Please pass a valid API key.", "provider_auth", False, None),
        (None, "Resource has been exhausted (e.g. check quota).", "provider_rate_limited", True, None),
        (None, "finish reason IMAGE_SAFETY", "safety_output", False, None),
        (None, "PROHIBITED_CONTENT", "safety_input", False, None),
    ],
    "emulator 8": [
        (502, "the answer is not JSON", "provider_error", True, None),
        (401, "Your prompt was flagged", "provider_auth", False, "no"),  # the account speaks first
    ],
}


@pytest.mark.parametrize(
    ("code", "words", "expected", "retryable", "billed"),
    [row for rows in KNOWN_ERRORS.values() for row in rows],
    ids=[f"{section}: {row[0]} {row[1][:40]}" for section, rows in KNOWN_ERRORS.items() for row in rows],
)
def test_known_code_and_message_are_classified(
    code: int | None, words: str, expected: str, retryable: bool, billed: str | None
) -> None:
    found = ERRORS.classify(code, words)
    assert (found.code, found.retryable, found.billed) == (expected, retryable, billed)
    assert found.known


# -- names
NAMED: dict[str, tuple[str, bool, str | None]] = {
    # fal 4
    "content_policy_violation": ("safety_input", False, None),
    "file_download_error": ("provider_rejected", False, None),
    "image_too_large": ("provider_rejected", False, None),
    "no_media_generated": ("no_image", False, None),
    "missing": ("provider_rejected", False, None),
    # Gemini 5: finishReason
    "STOP": ("no_image", False, None),
    "MAX_TOKENS": ("no_image", False, None),
    "SAFETY": ("safety_output", False, None),
    "RECITATION": ("safety_output", False, None),
    "LANGUAGE": ("provider_rejected", False, None),
    "OTHER": ("no_image", True, None),
    "BLOCKLIST": ("safety_input", False, None),
    "PROHIBITED_CONTENT": ("safety_input", False, None),
    "SPII": ("safety_output", False, None),
    "MALFORMED_FUNCTION_CALL": ("no_image", True, None),
    "IMAGE_SAFETY": ("safety_output", False, None),
    "IMAGE_PROHIBITED_CONTENT": ("safety_output", False, None),
    "IMAGE_RECITATION": ("safety_output", False, None),
    "IMAGE_OTHER": ("no_image", True, None),
    "NO_IMAGE": ("no_image", True, None),
    "UNEXPECTED_TOOL_CALL": ("no_image", False, None),
    "TOO_MANY_TOOL_CALLS": ("no_image", False, None),
    # Gemini 5: blockReason beyond these
    "MODEL_ARMOR": ("safety_input", False, None),
    "JAILBREAK": ("safety_input", False, None),
    # Gemini 5: error status and reason
    "INVALID_ARGUMENT": ("provider_rejected", False, None),
    "API_KEY_INVALID": ("provider_auth", False, "no"),
    "FAILED_PRECONDITION": ("provider_auth", False, "no"),
    "PERMISSION_DENIED": ("provider_auth", False, "no"),
    "UNAUTHENTICATED": ("provider_auth", False, "no"),
    "NOT_FOUND": ("provider_rejected", False, None),
    "RESOURCE_EXHAUSTED": ("provider_rate_limited", True, "no"),
    "INTERNAL": ("provider_error", True, None),
    "UNAVAILABLE": ("provider_unavailable", True, None),
    "DEADLINE_EXCEEDED": ("provider_error", True, None),
    # Replicate 3
    "E001": ("provider_credits", False, "no"),
    "E002": ("provider_auth", False, "no"),
    "E003": ("provider_unavailable", True, None),
    "E004": ("provider_unavailable", True, None),
    "E005": ("safety_input", False, None),
    # AceDataCloud 6.2
    "token_mismatched": ("provider_auth", False, "no"),
    "api_not_implemented": ("provider_rejected", False, None),
    "invalid_token": ("provider_auth", False, "no"),
    "too_many_requests": ("provider_rate_limited", True, "no"),
    "api_error": ("provider_error", True, None),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_error_is_classified(name: str) -> None:
    found = ERRORS.classify(None, "no reason given", [name])
    assert (found.code, found.retryable, found.billed) == NAMED[name]
    assert found.known
    assert ERRORS.classify(500, "no reason given", [name.swapcase()]) == found


def test_every_row_is_tested_and_within_the_closed_set() -> None:
    rows = [*ERRORS.account.values(), *ERRORS.order.values(), *error_codes.NAMES.values()]
    assert {row.code for row in [*rows, *error_codes.VAGUE_NAMES.values()]} <= TASK_CODES
    assert {*error_codes.NAMES, *error_codes.VAGUE_NAMES} == {name.lower() for name in NAMED}
    assert {*ERRORS.account, *ERRORS.order} == {row[0] for rows in KNOWN_ERRORS.values() for row in rows if row[0]}
    said = [row[1] for rows in KNOWN_ERRORS.values() for row in rows]
    for pattern, row in error_codes.PHRASES:
        assert any(pattern.search(words) for words in said), pattern.pattern
        assert row.code in TASK_CODES


@pytest.mark.parametrize(
    ("code", "words", "expected", "retryable"),
    [
        (500, "the flux capacitor is cold", "provider_error", True),
        (501, "the flux capacitor is cold", "provider_error", True),
        (599, "", "provider_error", True),
        (499, "", "provider_rejected", False),
        (None, "the flux capacitor is cold", "provider_error", False),
    ],
)
def test_class_of_an_unknown_error_is_marked_as_a_guess(
    code: int | None, words: str, expected: str, retryable: bool
) -> None:
    found = ERRORS.classify(code, words)
    assert (found.code, found.retryable, found.known) == (expected, retryable, False)


def test_specific_name_precedes_code_and_message_precedes_vague_name() -> None:
    assert ERRORS.classify(400, "no reason given", ["INVALID_ARGUMENT", "API_KEY_INVALID"]).code == "provider_auth"
    assert ERRORS.classify(422, "Invalid status code: 422", ["content_policy_violation"]).code == "safety_input"
    assert ERRORS.classify(500, "your prompt was flagged", ["api_error"]).code == "safety_input"


@pytest.mark.parametrize("words", ["RESOURCE_EXHAUSTED", "rate limit", "credits refunded", "E001", "invalid_token"])
def test_message_never_decides_that_an_attempt_was_unbilled(words: str) -> None:
    """An unbilled attempt is repeated automatically, and a message may repeat a prompt."""
    for code in (None, 500, 501):
        assert ERRORS.classify(code, f"failed: {words}").billed is None


# -- places of the names in a body

BODIES: list[tuple[Any, str, str | None]] = [
    (
        {"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED", "details": []}},
        "provider_rate_limited",
        "429",
    ),
    ({"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}, "provider_unavailable", "503"),
    (
        {
            "error": {
                "code": 400,
                "message": "x",
                "status": "INVALID_ARGUMENT",
                "details": [{"reason": "API_KEY_INVALID"}],
            }
        },
        "provider_auth",
        "400",
    ),
    (
        {"error": {"message": "x", "type": "content_policy_violation", "param": None, "code": None}},
        "safety_input",
        "content_policy_violation",
    ),
    ({"error": {"code": "too_many_requests", "message": "x"}}, "provider_rate_limited", "too_many_requests"),
    (
        {"detail": [{"loc": ["body"], "msg": "x", "type": "content_policy_violation"}]},
        "safety_input",
        "content_policy_violation",
    ),
    ({"status": "COMPLETED", "error": "x", "error_type": "no_media_generated"}, "no_image", "no_media_generated"),
    ({"promptFeedback": {"blockReason": "OTHER"}}, "no_image", "OTHER"),
    ({"candidates": [{"content": {"parts": None}, "finishReason": "IMAGE_SAFETY"}]}, "safety_output", "IMAGE_SAFETY"),
    ({"data": {"status": "failed", "error": {"code": "PROHIBITED_CONTENT"}}}, "safety_input", "PROHIBITED_CONTENT"),
    ({"status": "failed", "error": "IMAGE_SAFETY"}, "safety_output", None),
    ({"data": {"successFlag": 3, "errorCode": 501, "errorMessage": "generation failed"}}, "provider_error", "501"),
]


@pytest.mark.parametrize(("body", "code", "provider_code"), BODIES)
def test_names_are_found_in_every_known_place(body: Any, code: str, provider_code: str | None) -> None:
    report = REPORTS.job_failed(ParsedResponse(body), "job")
    assert (report.code, report.provider_code, report.known) == (code, provider_code, True)


def answered(status: int, body: Any, headers: dict[str, str] | None = None) -> HttpResponse:
    return HttpResponse(status=status, headers=headers or {}, body=json.dumps(body).encode())


@pytest.mark.parametrize(("header", "wait"), [("7", 7.0), ("99999", 600.0), ("soon", 5.0)])
def test_requested_wait_is_limited(header: str, wait: float) -> None:
    reply = ProviderResponse.from_http(answered(429, {}, {"retry-after": header}), 0.0)
    assert REPORTS.refusal(reply).retry_in == wait


def test_unknown_error_keeps_its_code_and_message() -> None:
    body = {"data": {"state": "fail", "failCode": "FLUX-7", "failMsg": "the flux capacitor is cold"}}
    assert REPORTS.job_failed(ParsedResponse(body), "job") == Failed(
        code="provider_error",
        message="the flux capacitor is cold",
        retryable=False,
        billed="unknown",
        job_id="job",
        provider_code="FLUX-7",
        known=False,
    )
