"""Signatures by a JSON Web Token with published keys."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from webhooks.signatures.base import Proof
from webhooks.signatures.rs256_jwt import Rs256Jwt, is_jwt, read_keys
from webhooks.signatures.standard import StandardSignature

NOW = 1_790_000_000
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CLAIMS = {"iss": "https://generativelanguage.googleapis.com", "iat": NOW, "exp": NOW + 300}
BODY = b'{"type":"batch.succeeded"}'


def jwk(key: rsa.RSAPrivateKey, kid: str, **fields: Any) -> dict[str, Any]:
    return {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": kid, **fields}


VERIFIER = Rs256Jwt(keys=read_keys({"keys": [jwk(KEY, "one"), jwk(OTHER, "two"), {"kty": "EC", "kid": "three"}, 7]}))


def signed(claims: Mapping[str, Any] = CLAIMS, *, key: Any = KEY, kid: str = "one", at: int = NOW) -> dict[str, str]:
    token = jwt.encode(dict(claims), key, algorithm="RS256", headers={"kid": kid})
    return {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": token}


def verify(headers: Mapping[str, str], now: float = NOW) -> Proof:
    return VERIFIER.verify(headers, BODY, (), now)


def test_token_of_a_published_key_proves_the_sender() -> None:
    assert verify(signed()) == Proof.SENDER_VERIFIED
    assert verify(signed(key=OTHER, kid="two")) == Proof.SENDER_VERIFIED
    assert verify({}) == Proof.NONE


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(signed(key=OTHER), id="another key"),
        pytest.param(signed(kid="unknown"), id="unknown key id"),
        pytest.param(signed({**CLAIMS, "exp": NOW - 301}), id="expired"),
        pytest.param(signed({**CLAIMS, "iat": NOW + 301}), id="from the future"),
        pytest.param(signed({**CLAIMS, "exp": "soon"}), id="no moment"),
        pytest.param(signed(at=NOW - 301), id="old timestamp"),
        pytest.param({**signed(), "webhook-timestamp": "now"}, id="no timestamp"),
        pytest.param({**signed(), "webhook-signature": "v1,abc"}, id="another scheme"),
        pytest.param({**signed(), "webhook-signature": "a.b.c"}, id="no token"),
        pytest.param({**signed(), "webhook-signature": "x" * 20_000}, id="too long"),
    ],
)
def test_every_other_token_is_wrong(headers: Mapping[str, str]) -> None:
    assert verify(headers) == Proof.WRONG


def test_algorithm_is_never_the_token_s_choice() -> None:
    public = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    forged = jwt.api_jws.PyJWS(algorithms=["HS256"])
    hmac_token = forged.encode(json.dumps(CLAIMS).encode(), public[:64], algorithm="HS256", headers={"kid": "one"})
    _, claims, signature = signed()["webhook-signature"].split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"one"}').rstrip(b"=").decode()
    none_token = f"{none}.{claims}.{signature}"
    for token in (hmac_token, none_token):
        assert verify({**signed(), "webhook-signature": token}) == Proof.WRONG


def test_change_of_one_character_is_wrong() -> None:
    headers = signed()
    token = headers["webhook-signature"]
    passed = []
    for at, char in enumerate(token):
        for other in {"A", "B", "w", "_", "-", "."} - {char}:
            changed = token[:at] + other + token[at + 1 :]
            if verify({**headers, "webhook-signature": changed}) != Proof.WRONG:
                passed.append((at, other))
    assert passed == []


def test_key_set_without_keys_is_an_error() -> None:
    documents: list[Any] = [None, [], {}, {"keys": {}}]
    for document in documents:
        with pytest.raises(ValueError, match="JWK"):
            read_keys(document)
    assert read_keys({"keys": [{"kty": "RSA", "kid": "one", "n": "?"}]}) == {}


def test_kind_is_recognised_by_the_form_of_the_signature() -> None:
    assert is_jwt(signed())
    assert not is_jwt(StandardSignature([b"key" * 10]).sign("msg_1", NOW, BODY))
    assert not is_jwt({})
