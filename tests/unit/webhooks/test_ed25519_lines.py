"""Ed25519 over four lines: fal's vector, every single-byte mutation, and the keys of a JWK set."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from webhooks.signatures.base import Proof
from webhooks.signatures.ed25519_lines import Ed25519Lines, read_keys, sign, write_keys

SEED = bytes(range(32))
PUBLIC = "A6EHv_POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg"
NOW = 1_769_670_760.0
BODY = b'{"request_id":"req_123","gateway_request_id":"gw_123","status":"OK","payload":{"images":[]}}'
HEADERS = {
    "x-fal-webhook-request-id": "req_123",
    "x-fal-webhook-user-id": "user_1",
    "x-fal-webhook-timestamp": "1769670760",
    "x-fal-webhook-signature": (
        "2831d0d99d93e0af03e0abab74532e0a1cb741be7a5517702965b73d38f30ca3"
        "13e5ec7184cf179f0a834d0a1ee0674f740e905cd518ef804f5d782fe60b7c0d"
    ),
}
VERIFIER = Ed25519Lines(read_keys({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": PUBLIC}]}))


def prove(headers: dict[str, str], body: bytes = BODY, now: float = NOW, verifier: Ed25519Lines = VERIFIER) -> Proof:
    return verifier.verify(headers, body, (), now)


def mutations(data: bytes, masks: Iterable[int]) -> Iterator[bytes]:
    """Yield every copy with one byte changed. masks: the bits that are flipped, together."""
    for mask in masks:
        yield from (data[:at] + bytes([byte ^ mask]) + data[at + 1 :] for at, byte in enumerate(data))


def test_vector_is_verified_and_reproduced() -> None:
    assert prove(HEADERS) == Proof.BODY_VERIFIED
    assert sign(Ed25519PrivateKey.from_private_bytes(SEED), "req_123", "user_1", NOW, BODY) == HEADERS


@pytest.mark.parametrize("name", HEADERS)
def test_any_change_of_one_byte_of_a_header_is_wrong(name: str) -> None:
    changed = ({**HEADERS, name: value.decode("latin-1")} for value in mutations(HEADERS[name].encode(), range(1, 256)))
    assert {prove(headers) for headers in changed} == {Proof.WRONG}


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param((1, 2, 4, 8, 16, 32, 64, 128), id="every bit"),
        pytest.param(range(1, 256), id="every value", marks=pytest.mark.faults),  # takes seconds
    ],
)
def test_any_change_of_one_byte_of_the_body_is_wrong(masks: Iterable[int]) -> None:
    assert {prove(HEADERS, body) for body in mutations(BODY, masks)} == {Proof.WRONG}
    assert {prove(HEADERS, body) for body in (BODY[:-1], BODY + b" ", b"")} == {Proof.WRONG}


@pytest.mark.parametrize("name", HEADERS)
def test_missing_header_is_wrong_and_without_signature_nothing_is_proven(name: str) -> None:
    rest = {other: value for other, value in HEADERS.items() if other != name}
    assert prove(rest) == (Proof.NONE if name == "x-fal-webhook-signature" else Proof.WRONG)


def test_lines_cannot_be_moved_between_headers() -> None:
    moved = {**HEADERS, "x-fal-webhook-request-id": "req_123\nuser_1", "x-fal-webhook-user-id": ""}
    assert prove(moved) == Proof.WRONG


@pytest.mark.parametrize(("seconds", "proof"), [(300, Proof.BODY_VERIFIED), (301, Proof.WRONG)])
def test_timestamp_is_limited_in_both_directions(seconds: int, proof: Proof) -> None:
    assert prove(HEADERS, now=NOW + seconds) == proof
    assert prove(HEADERS, now=NOW - seconds) == proof


def test_every_published_key_is_tried() -> None:
    """During a rotation both are published."""
    others = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key() for n in (1, 2)]
    assert prove(HEADERS, verifier=Ed25519Lines([*others, *VERIFIER.keys])) == Proof.BODY_VERIFIED
    assert prove(HEADERS, verifier=Ed25519Lines(others)) == Proof.WRONG


def test_key_set_is_written_as_it_is_read() -> None:
    assert write_keys(VERIFIER.keys) == {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": PUBLIC}]}


def test_other_keys_of_a_set_are_left_out() -> None:
    rsa = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}
    keys: list[Any] = [rsa, None, {"x": 5}, {"x": "ä"}, {"x": "A6EH"}, {"kty": "OKP", "crv": "X25519", "x": PUBLIC}]
    assert len(read_keys({"keys": [*keys, {"x": PUBLIC}]})) == 1
    assert len(read_keys({"keys": [{"x": PUBLIC + "="}]})) == 1


@pytest.mark.parametrize("document", [None, [], "x", {}, {"keys": None}, {"keys": []}, {"keys": [{"x": "AA"}]}])
def test_document_without_a_key_is_an_error(document: Any) -> None:
    with pytest.raises(ValueError, match="JWK set"):
        read_keys(document)


def test_signature_in_another_spelling_is_wrong() -> None:
    raw = bytes.fromhex(HEADERS["x-fal-webhook-signature"])
    for text in (raw.hex().upper(), base64.b64encode(raw).decode(), raw.hex(" "), "", raw.hex() + "0"):
        assert prove({**HEADERS, "x-fal-webhook-signature": text}) == Proof.WRONG
