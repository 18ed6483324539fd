"""Each scheme of a provider's callbacks: its published vector holds, and no single byte of it can be changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from webhooks.signatures.base import Proof, Signature
from webhooks.signatures.hex_v3 import HexSignature, read_text_secret
from webhooks.signatures.job_id_hmac import JobIdHmac
from webhooks.signatures.standard import StandardSignature, read_secret

JOB = "558a0e58d58a6cb69e5c6a55170398da"


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A signed callback. job_id: where the scheme covers it, instead of the body."""

    name: str
    signature: Signature
    headers: Mapping[str, str]
    body: bytes
    at: float
    job_id: str = ""

    def verify(self, headers: Mapping[str, str], body: bytes, job_id: str) -> Proof:
        return self.signature.verify(headers, body, (job_id,), self.at)


def standard_headers(message_id: str, timestamp: str, signature: str) -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": signature}


VECTORS = (
    Vector(
        name="kie",
        signature=JobIdHmac(
            key=b"kie-test-hmac-key", signature_header="x-webhook-signature", timestamp_header="x-webhook-timestamp"
        ),
        headers={
            "x-webhook-timestamp": "1769670760",
            "x-webhook-signature": "wTVEfbytp2vi0qjI+xRocKznoIZpoBXyB2Ywc3LnniU=",
        },
        body=b"",
        job_id=JOB,
        at=1769670760,
    ),
    Vector(
        name="standard",
        signature=StandardSignature([read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]),
        headers=standard_headers(
            "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        ),
        body=b'{"test": 2432232314}',
        at=1614265330,
    ),
    Vector(
        name="wavespeed",
        signature=HexSignature([read_text_secret("whsec_wavespeed-test-key")]),
        headers=standard_headers(
            "pred_abc", "1769670760", "v3,1db6bb7c8c8c866e7735fb8a879c4e47ad07f3c4541b7b07db4d896c51aa36cb"
        ),
        body=b'{"id":"pred_abc","status":"completed"}',
        at=1769670760,
    ),
)

by_name = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def mutations(data: bytes) -> Iterator[bytes]:
    """Yield every copy with one byte changed, to each of several values."""
    for at, byte in enumerate(data):
        for other in {byte ^ 1, byte ^ 2, byte ^ 32, ord("A"), ord("0"), ord(" "), ord(",")} - {byte}:
            yield data[:at] + bytes([other]) + data[at + 1 :]


@by_name
def test_vector_is_verified(vector: Vector) -> None:
    proof = vector.verify(vector.headers, vector.body, vector.job_id)
    assert proof == (Proof.SENDER_VERIFIED if vector.job_id else Proof.BODY_VERIFIED)


@by_name
def test_change_of_one_byte_is_wrong(vector: Vector) -> None:
    """The last digit of base64 has unused bits: an equal digest in another spelling is another signature."""
    passed = []
    for name, value in vector.headers.items():
        for changed in mutations(value.encode()):
            headers = {**vector.headers, name: changed.decode("latin-1")}
            if vector.verify(headers, vector.body, vector.job_id) != Proof.WRONG:
                passed.append((name, changed))
    passed += [("body", b) for b in mutations(vector.body) if vector.verify(vector.headers, b, "") != Proof.WRONG]
    for changed in mutations(vector.job_id.encode()):
        if vector.verify(vector.headers, b"", changed.decode("latin-1")) != Proof.WRONG:
            passed.append(("job id", changed))
    assert passed == []


def test_secret_of_wavespeed_is_text() -> None:
    assert read_text_secret("whsec_not base64!") == b"not base64!"
    for wrong in ("", "whsec_", "secret"):
        with pytest.raises(ValueError, match="whsec_") as caught:
            read_text_secret(wrong)
        assert "secret" not in str(caught.value).replace("a secret", "")
