"""Signatures over a job id and a timestamp."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.signatures.base import Proof, Unsigned
from webhooks.signatures.job_id_hmac import JobIdHmac

JOB = "558a0e58d58a6cb69e5c6a55170398da"
AT = 1769670760
KEY = JobIdHmac(
    key=b"kie-test-hmac-key", signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp"
)
SIGNED = {"x-webhook-timestamp": str(AT), "x-webhook-signature": "wTVEfbytp2vi0qjI+xRocKznoIZpoBXyB2Ywc3LnniU="}


def test_documented_vector_of_kie_verifies_the_sender_only() -> None:
    assert KEY.verify(SIGNED, b"any body", (JOB,), AT) == Proof.SENDER_VERIFIED
    assert KEY.sign(JOB, AT) == SIGNED


def test_any_id_of_the_body_may_be_the_signed_one() -> None:
    assert KEY.verify(SIGNED, b"", ("another", JOB), AT) == Proof.SENDER_VERIFIED


@pytest.mark.parametrize("skew", [-300, -299, 0, 299, 300])
def test_five_minutes_of_clock_skew_are_tolerated(skew: int) -> None:
    assert KEY.verify(SIGNED, b"", (JOB,), AT + skew) == Proof.SENDER_VERIFIED


@pytest.mark.parametrize("skew", [-301, 301, 86_400])
def test_old_and_future_signatures_are_wrong(skew: int) -> None:
    assert KEY.verify(SIGNED, b"", (JOB,), AT + skew) == Proof.WRONG


HEX = hmac.new(b"kie-test-hmac-key", f"{JOB}.{AT}".encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    "headers",
    [
        {"x-webhook-timestamp": str(AT)},
        {"x-webhook-signature": SIGNED["x-webhook-signature"]},
        {**SIGNED, "x-webhook-timestamp": f"{AT}.0"},
        {**SIGNED, "x-webhook-timestamp": f"{AT // 1000}_{AT % 1000}"},
        {**SIGNED, "x-webhook-timestamp": f"{AT}000"},
        {**SIGNED, "x-webhook-timestamp": "١٧٦٩٦٧٠٧٦٠"},
        {**SIGNED, "x-webhook-signature": HEX},
        {**SIGNED, "x-webhook-signature": ""},
        {**SIGNED, "x-webhook-signature": "w" + SIGNED["x-webhook-signature"][1:-2] + "A="},
        {**SIGNED, "x-webhook-signature": "подпись"},
    ],
)
def test_invalid_signature_is_wrong(headers: dict[str, str]) -> None:
    assert KEY.verify(headers, b"", (JOB,), AT) == Proof.WRONG


def test_signature_for_another_job_is_wrong() -> None:
    assert KEY.verify(SIGNED, b"", ("f" * 32,), AT) == Proof.WRONG
    assert KEY.verify(SIGNED, b"", (), AT) == Proof.WRONG


def test_missing_signature_proves_nothing() -> None:
    assert KEY.verify({}, b"", (JOB,), AT) == Proof.NONE
    assert Unsigned().verify(SIGNED, b"", (JOB,), AT) == Proof.NONE


@given(st.dictionaries(st.sampled_from(["x-webhook-timestamp", "x-webhook-signature"]), st.text()), st.text())
def test_arbitrary_headers_never_raise_or_verify(headers: dict[str, str], job: str) -> None:
    assert KEY.verify(headers, b"", (job,), AT) in {Proof.NONE, Proof.WRONG}


def test_repeated_digest_is_wrong() -> None:
    two = base64.b64encode(base64.b64decode(SIGNED["x-webhook-signature"]) * 2).decode()
    assert KEY.verify({**SIGNED, "x-webhook-signature": two}, b"", (JOB,), AT) == Proof.WRONG


def test_repr_hides_the_key() -> None:
    assert "kie-test" not in repr(KEY)
