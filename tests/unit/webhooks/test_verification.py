"""Verification of callbacks."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.redaction import Redactor
from webhooks.signatures.base import Proof
from webhooks.verification import (
    MAX_BODY_BYTES,
    MIN_STORED_BODY_BYTES,
    Evidence,
    MalformedBody,
    Verification,
    decide,
    parse_body,
    stored_body,
    stored_headers,
    stored_query,
)

REDACTOR = Redactor(["secret-of-the-broker"])


def stored_text(body: bytes, token: str | None = None) -> str:
    text, _ = stored_body(body, REDACTOR, token=token, is_proven=True)
    return text


def verification_of(
    token: Proof = Proof.NONE,
    signature: Proof = Proof.NONE,
    *,
    required: bool = False,
    trusted: bool = False,
    known: bool = True,
) -> tuple[Verification, int]:
    decision = decide(
        Evidence(token=token, signature=signature, signature_required=required, trusted=trusted, known=known)
    )
    return decision.verification, decision.status


def test_decision_table() -> None:
    assert verification_of(Proof.BODY_VERIFIED) == (Verification.ACCEPT, 200)
    assert verification_of(signature=Proof.BODY_VERIFIED) == (Verification.ACCEPT, 200)
    assert verification_of(signature=Proof.SENDER_VERIFIED) == (Verification.RECHECK, 202)
    assert verification_of(trusted=True) == (Verification.ACCEPT, 200)
    assert verification_of() == (Verification.RECHECK, 202)
    assert verification_of(Proof.WRONG) == (Verification.REJECT, 401)
    assert verification_of(signature=Proof.WRONG) == (Verification.REJECT, 401)
    assert verification_of(required=True) == (Verification.REJECT, 401)
    assert verification_of(known=False) == (Verification.UNKNOWN, 404)


def test_wrong_proof_is_never_outweighed() -> None:
    for other, trusted, known in itertools.product(Proof, [True, False], [True, False]):
        assert verification_of(Proof.WRONG, other, trusted=trusted, known=known) == (Verification.REJECT, 401)
        assert verification_of(other, Proof.WRONG, trusted=trusted, known=known) == (Verification.REJECT, 401)


def test_only_verified_bodies_and_trusted_callers_are_accepted() -> None:
    for token, signature, required, trusted, known in itertools.product(
        Proof, Proof, [True, False], [True, False], [True, False]
    ):
        if verification_of(token, signature, required=required, trusted=trusted, known=known)[0] == Verification.ACCEPT:
            assert known
            assert Proof.BODY_VERIFIED in {token, signature} or (trusted and signature == Proof.NONE)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"not json", 400),
        (b'{"a": NaN}', 400),
        (b'{"a": Infinity}', 400),
        (b"\xff\xfe{}", 400),
        (b'{"a": "\\ud800"}', 400),
        (b"[" * 200_000, 400),
        (b'{"a":' * 40 + b"1" + b"}" * 40, 400),
        (b'{"n": ' + b"9" * 5000 + b"}", 400),
        (b'{"truncated": ', 400),
        (b'{"data": {"state": "success", "state": "fail"}}', 400),
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_unreadable_body_is_malformed(body: bytes, status: int) -> None:
    with pytest.raises(MalformedBody) as caught:
        parse_body(body)
    assert caught.value.decision.status == status


def test_valid_bodies_are_parsed() -> None:
    assert parse_body(b'{"data": {"taskId": "x", "n": [1, 2.5, null, true]}}')["data"]["taskId"] == "x"
    assert parse_body('{"текст": "图片"}'.encode()) == {"текст": "图片"}
    assert parse_body(b"[]") == []


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_never_raise_other_errors(body: bytes) -> None:
    with suppress(MalformedBody):
        json.dumps(parse_body(body))
    assert "\x00" not in stored_text(body)


@pytest.mark.parametrize("sign", ["=", "\\u003d", "\\\\u003d", "%3D", "%3d", "%253D"])
def test_repeated_token_is_masked_in_the_stored_body(sign: str) -> None:
    """kie.ai repeats the whole request with the callback URL; serializers and URLs escape it."""
    body = '{"data": {"param": "{\\"callBackUrl\\": \\"https://x/h?task=t&token' + sign + "a1" * 16 + '\\"}"}}'
    kept = stored_text(body.encode())
    assert "a1a1" not in kept
    assert "[hidden]" in kept


def test_token_of_the_request_is_masked_in_any_spelling() -> None:
    token = "a1" * 16
    kept = stored_text(json.dumps({"address": ["https://x/h", "secret", token]}).encode(), token)
    assert json.loads(kept) == {"address": ["https://x/h", "secret", "[hidden]"]}
    assert stored_text(b'{"state": "fail"}', "fail") == '{"state": "fail"}'


@pytest.mark.parametrize(
    ("size", "is_proven", "stored"),
    [
        (MAX_BODY_BYTES, True, MAX_BODY_BYTES),
        (MAX_BODY_BYTES + 1, True, MIN_STORED_BODY_BYTES),
        (MIN_STORED_BODY_BYTES, False, MIN_STORED_BODY_BYTES),
        (MIN_STORED_BODY_BYTES + 1, False, MIN_STORED_BODY_BYTES),
    ],
)
def test_body_without_proof_or_too_large_is_truncated(size: int, is_proven: bool, stored: int) -> None:
    text, is_truncated = stored_body(b"x" * size, REDACTOR, is_proven=is_proven)
    assert (len(text), is_truncated) == (stored, stored < size)


def test_truncation_leaves_no_half_of_a_secret() -> None:
    for position in range(MIN_STORED_BODY_BYTES - 25, MIN_STORED_BODY_BYTES + 2):
        text, is_truncated = stored_body(b"x" * position + b"secret-of-the-broker" * 200, REDACTOR)
        assert is_truncated
        assert "secret" not in text
    assert stored_body("я".encode() * 2000 + b"x", REDACTOR)[0] == "я" * 1024


def test_evidence_of_any_proof_counts_unless_another_is_wrong() -> None:
    for token, signature, trusted in itertools.product(Proof, Proof, [True, False]):
        evidence = Evidence(token=token, signature=signature, trusted=trusted)
        has_proof = trusted or token != Proof.NONE or signature != Proof.NONE
        assert evidence.is_proven is (has_proof and Proof.WRONG not in {token, signature})


def test_secret_headers_and_parameters_are_not_stored() -> None:
    headers = {
        "authorization": "Bearer canary",
        "cookie": "canary",
        "x-api-key": "canary",
        "x-secret": "canary",
        "x-webhook-timestamp": "1",
        "content-type": "application/json",
        "user-agent": "kie",
    }
    kept = stored_headers(headers, REDACTOR)
    assert "canary" not in kept
    assert set(json.loads(kept)) == {"x-webhook-timestamp", "content-type", "user-agent"}
    assert json.loads(stored_query({"task": "t", "attempt": "1", "token": "canary", "x": "canary"}, REDACTOR)) == {
        "task": "t",
        "attempt": "1",
    }
