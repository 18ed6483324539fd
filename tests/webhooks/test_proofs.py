"""What proves a callback, and what does not."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.proofs import CallbackTokens, KieSignature, Presence, Proof, Unsigned, new_nonce

JOB = "558a0e58d58a6cb69e5c6a55170398da"
AT = 1769670760
KIE = KieSignature(b"kie-test-hmac-key")
SIGNED = {"x-webhook-timestamp": str(AT), "x-webhook-signature": "wTVEfbytp2vi0qjI+xRocKznoIZpoBXyB2Ywc3LnniU="}


def test_the_documented_kie_vector_proves_the_sender_and_not_the_body() -> None:
    assert KIE.prove(SIGNED, b"whatever the body says", (JOB,), AT) == Proof.SENDER


def test_any_id_of_the_body_may_be_the_signed_one() -> None:
    assert KIE.prove(SIGNED, b"", ("another", JOB), AT) == Proof.SENDER


@pytest.mark.parametrize("drift", [-300, -299, 0, 299, 300])
def test_five_minutes_of_clock_difference_are_fine(drift: int) -> None:
    assert KIE.prove(SIGNED, b"", (JOB,), AT + drift) == Proof.SENDER


@pytest.mark.parametrize("drift", [-301, 301, 86_400])
def test_old_and_future_signatures_are_wrong(drift: int) -> None:
    assert KIE.prove(SIGNED, b"", (JOB,), AT + drift) == Proof.WRONG


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
def test_what_is_offered_and_not_right_is_wrong(headers: dict[str, str]) -> None:
    assert KIE.prove(headers, b"", (JOB,), AT) == Proof.WRONG


def test_a_signature_for_another_job_is_wrong() -> None:
    assert KIE.prove(SIGNED, b"", ("f" * 32,), AT) == Proof.WRONG
    assert KIE.prove(SIGNED, b"", (), AT) == Proof.WRONG


def test_nothing_offered_is_no_proof() -> None:
    assert KIE.prove({}, b"", (JOB,), AT) == Proof.NONE
    assert Unsigned().prove(SIGNED, b"", (JOB,), AT) == Proof.NONE


TOKENS = CallbackTokens(b"a secret of our own")


def test_a_token_is_good_for_one_attempt_of_one_task() -> None:
    token = TOKENS.token("task_a", 1)
    assert TOKENS.prove("task_a", 1, token) == Proof.BODY
    assert TOKENS.prove("task_a", 2, token) == Proof.WRONG
    assert TOKENS.prove("task_b", 1, token) == Proof.WRONG
    assert CallbackTokens(b"another secret").prove("task_a", 1, token) == Proof.WRONG
    assert len(token) == 32


@given(st.text(), st.text(max_size=80), st.integers())
def test_no_guess_is_right_and_none_breaks_anything(guess: str, task: str, attempt: int) -> None:
    if guess != TOKENS.token(task, attempt):
        assert TOKENS.prove(task, attempt, guess) == Proof.WRONG


@given(st.dictionaries(st.sampled_from(["x-webhook-timestamp", "x-webhook-signature"]), st.text()), st.text())
def test_no_header_breaks_the_verifier(headers: dict[str, str], job: str) -> None:
    assert KIE.prove(headers, b"", (job,), AT) in {Proof.NONE, Proof.WRONG}


def test_signed_twice_is_not_signed_once() -> None:
    two = base64.b64encode(base64.b64decode(SIGNED["x-webhook-signature"]) * 2).decode()
    assert KIE.prove({**SIGNED, "x-webhook-signature": two}, b"", (JOB,), AT) == Proof.WRONG


def test_only_who_has_the_secret_can_answer_a_nonce() -> None:
    ours, nonce = Presence(b"secret"), new_nonce()
    answer = ours.answer(nonce)
    assert ours.shown(nonce, answer)
    assert not ours.shown(new_nonce(), answer), "an answer heard before is worth nothing"
    assert not Presence(b"another").shown(nonce, answer)
    stranger: tuple[object, ...] = (None, 7, [], "", "ä", nonce)
    assert not any(ours.shown(nonce, strange) for strange in stranger)


@pytest.mark.parametrize("nonce", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 31 + "\n", "task_1:1", "ａ" * 32])
def test_nothing_but_a_nonce_is_ever_signed(nonce: str) -> None:
    """Or a stranger could have us sign a token of somebody's task."""
    assert Presence(b"secret").answer(nonce) is None
