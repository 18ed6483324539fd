"""Callback tokens and challenge responses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.signatures.base import Proof
from webhooks.tokens import CallbackTokens, ChallengeResponse, new_nonce

TOKENS = CallbackTokens(b"a secret of the broker")


def test_token_is_valid_for_one_attempt_of_one_task() -> None:
    token = TOKENS.token("task_a", 1)
    assert TOKENS.verify("task_a", 1, token) == Proof.BODY_VERIFIED
    assert TOKENS.verify("task_a", 2, token) == Proof.WRONG
    assert TOKENS.verify("task_b", 1, token) == Proof.WRONG
    assert CallbackTokens(b"another secret").verify("task_a", 1, token) == Proof.WRONG
    assert len(token) == 32


@given(st.text(), st.text(max_size=80), st.integers())
def test_guessed_tokens_never_verify_or_raise(guess: str, task: str, attempt: int) -> None:
    if guess != TOKENS.token(task, attempt):
        assert TOKENS.verify(task, attempt, guess) == Proof.WRONG


def test_only_a_holder_of_the_secret_answers_a_challenge() -> None:
    ours, nonce = ChallengeResponse(b"secret"), new_nonce()
    answer = ours.answer(nonce)
    assert ours.is_valid(nonce, answer)
    assert not ours.is_valid(new_nonce(), answer), "an answer to another nonce is worthless"
    assert not ChallengeResponse(b"another").is_valid(nonce, answer)
    others: tuple[object, ...] = (None, 7, [], "", "ä", nonce)
    assert not any(ours.is_valid(nonce, other) for other in others)


@pytest.mark.parametrize("nonce", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 31 + "\n", "task_1:1", "ａ" * 32])
def test_only_nonces_are_signed(nonce: str) -> None:
    """Any other text could be the message of a callback token."""
    assert ChallengeResponse(b"secret").answer(nonce) is None
