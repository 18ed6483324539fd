"""From raw bytes to a verdict."""

from __future__ import annotations

import itertools
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.signatures.base import Proof
from webhooks.verification import (
    MAX_BODY_BYTES,
    Evidence,
    MalformedBody,
    Verification,
    decide,
    parse_body,
    stored_body,
    stored_headers,
    stored_query,
)


def verdict(
    token: Proof = Proof.NONE,
    signature: Proof = Proof.NONE,
    *,
    required: bool = False,
    trusted: bool = False,
    known: bool = True,
) -> tuple[Verification, int]:
    judged = decide(
        Evidence(token=token, signature=signature, signature_required=required, trusted=trusted, known=known)
    )
    return judged.verification, judged.status


def test_the_proof_table() -> None:
    assert verdict(Proof.BODY_VERIFIED) == (Verification.ACCEPT, 200)
    assert verdict(signature=Proof.BODY_VERIFIED) == (Verification.ACCEPT, 200)
    assert verdict(signature=Proof.SENDER_VERIFIED) == (Verification.RECHECK, 202)
    assert verdict(trusted=True) == (Verification.ACCEPT, 200)
    assert verdict() == (Verification.RECHECK, 202)
    assert verdict(Proof.WRONG) == (Verification.REJECT, 401)
    assert verdict(signature=Proof.WRONG) == (Verification.REJECT, 401)
    assert verdict(required=True) == (Verification.REJECT, 401)
    assert verdict(known=False) == (Verification.UNKNOWN, 404)


def test_something_wrong_is_never_outweighed() -> None:
    for other, trusted, known in itertools.product(Proof, [True, False], [True, False]):
        assert verdict(Proof.WRONG, other, trusted=trusted, known=known) == (Verification.REJECT, 401)
        assert verdict(other, Proof.WRONG, trusted=trusted, known=known) == (Verification.REJECT, 401)


def test_only_body_proofs_and_trusted_callers_are_believed() -> None:
    for token, signature, required, trusted, known in itertools.product(
        Proof, Proof, [True, False], [True, False], [True, False]
    ):
        if verdict(token, signature, required=required, trusted=trusted, known=known)[0] == Verification.ACCEPT:
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
        (b" " * (MAX_BODY_BYTES + 1), 413),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_not_readable_is_said_to_be_so(body: bytes, status: int) -> None:
    with pytest.raises(MalformedBody) as told:
        parse_body(body)
    assert told.value.status == status


def test_ordinary_bodies_are_read() -> None:
    assert parse_body(b'{"data": {"taskId": "x", "n": [1, 2.5, null, true]}}')["data"]["taskId"] == "x"
    assert parse_body('{"текст": "图片"}'.encode()) == {"текст": "图片"}
    assert parse_body(b"[]") == []


@given(st.binary(max_size=2000))
def test_no_bytes_break_the_reader(body: bytes) -> None:
    with suppress(MalformedBody):
        json.dumps(parse_body(body))
    assert "\x00" not in stored_body(body)


@pytest.mark.parametrize("sign", ["=", "\\u003d", "\\\\u003d", "%3D", "%3d", "%253D"])
def test_the_token_that_a_provider_repeats_stays_out_of_the_inbox(sign: str) -> None:
    """kie.ai sends back the whole request, with our callback address in it; serializers and addresses escape it."""
    body = '{"data": {"param": "{\\"callBackUrl\\": \\"https://x/h?task=t&token' + sign + "a1" * 16 + '\\"}"}}'
    kept = stored_body(body.encode())
    assert "a1a1" not in kept
    assert "[hidden]" in kept


def test_the_token_it_came_with_stays_out_however_it_is_written() -> None:
    token = "a1" * 16
    kept = stored_body(json.dumps({"address": ["https://x/h", "secret", token]}).encode(), token)
    assert json.loads(kept) == {"address": ["https://x/h", "secret", "[hidden]"]}
    assert stored_body(b'{"state": "fail"}', "fail") == '{"state": "fail"}'


def test_secrets_stay_out_of_the_inbox() -> None:
    headers = {
        "authorization": "Bearer canary",
        "cookie": "canary",
        "x-api-key": "canary",
        "x-secret": "canary",
        "x-webhook-timestamp": "1",
        "content-type": "application/json",
        "user-agent": "kie",
    }
    kept = stored_headers(headers)
    assert "canary" not in kept
    assert set(json.loads(kept)) == {"x-webhook-timestamp", "content-type", "user-agent"}
    assert json.loads(stored_query({"task": "t", "attempt": "1", "token": "canary", "x": "canary"})) == {
        "task": "t",
        "attempt": "1",
    }
