"""Standard Webhooks: interoperability with the official library, and verification of arbitrary input."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from webhooks.signatures.base import Proof
from webhooks.signatures.standard import StandardSignature, derived_key, read_secret, write_secret

OLD, NEW = b"o" * 24, b"n" * 32
BODY = json.dumps({"type": "task.completed", "data": {"prompt": "狐狸"}}, ensure_ascii=False).encode()
NOW = 1_790_000_000.0


def signed(*keys: bytes, at: float = NOW, body: bytes = BODY, message_id: str = "evt_1") -> dict[str, str]:
    return StandardSignature(keys).sign(message_id, at, body)


def prove(headers: dict[str, Any], body: bytes = BODY, *keys: bytes, now: float = NOW) -> Proof:
    return StandardSignature(keys or (NEW,)).verify(headers, body, (), now)


# -- the official library on the other side


@pytest.mark.parametrize("key", [OLD, NEW, derived_key(b"a secret"), bytes(range(64))])
def test_official_library_accepts_signed_message(key: bytes) -> None:
    assert Webhook(write_secret(key)).verify(BODY, signed(key, at=time.time())) == json.loads(BODY)


@pytest.mark.parametrize("receiver", [OLD, NEW])
def test_old_and_new_key_are_valid_during_rotation(receiver: bytes) -> None:
    assert Webhook(write_secret(receiver)).verify(BODY, signed(NEW, OLD, at=time.time()))


def test_official_library_rejects_changed_message() -> None:
    headers = signed(NEW, at=time.time())
    changed: list[tuple[bytes, dict[str, str]]] = [
        (BODY + b" ", headers),
        (BODY, {**headers, "webhook-id": "evt_2"}),
        (BODY, signed(NEW, at=time.time() - 400)),
        (BODY, signed(OLD, at=time.time())),
    ]
    for body, sent in changed:
        with pytest.raises(WebhookVerificationError):
            Webhook(write_secret(NEW)).verify(body, sent)


def test_message_signed_by_the_official_library_is_verified() -> None:
    signature = Webhook(write_secret(NEW)).sign("msg_1", datetime.fromtimestamp(NOW, UTC), BODY.decode())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(NOW)), "webhook-signature": signature}
    assert prove(headers) == Proof.BODY_VERIFIED


def test_example_of_the_standard() -> None:
    """From the documentation of the standard's reference libraries: the same secret, id, time and body."""
    key = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = StandardSignature([key]).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# -- proving


def test_signature_covers_body_id_and_time() -> None:
    right = signed(NEW)
    assert prove(right) == Proof.BODY_VERIFIED
    assert prove(right, BODY + b" ") == Proof.WRONG
    assert prove({**right, "webhook-id": "evt_2"}) == Proof.WRONG
    assert prove({**right, "webhook-timestamp": str(int(NOW) + 1)}) == Proof.WRONG
    assert prove(right, BODY, OLD) == Proof.WRONG
    assert prove(right, BODY, OLD, NEW) == Proof.BODY_VERIFIED


@pytest.mark.parametrize(("seconds", "proof"), [(300, Proof.BODY_VERIFIED), (301, Proof.WRONG)])
def test_old_and_future_signatures_are_wrong(seconds: int, proof: Proof) -> None:
    assert prove(signed(NEW), now=NOW + seconds) == proof
    assert prove(signed(NEW), now=NOW - seconds) == proof


def test_missing_signature_proves_nothing_and_partial_one_is_wrong() -> None:
    right = signed(NEW)
    assert prove({}) == Proof.NONE
    for name in right:
        assert prove({name: right[name]}) == Proof.WRONG
        assert prove({other: right[other] for other in right if other != name}) == Proof.WRONG


@pytest.mark.parametrize(
    "timestamp",
    ["", " ", "1790000000.0", "179_0000_000", "+1790000000", " 1790000000", "1790000000 ", "1.79e9", "0x6ab1", "nan",
     "inf", "-1790000000", "١٧٩٠٠٠٠٠٠٠", "1790000000\n", "9" * 400],
)  # fmt: skip
def test_timestamp_must_be_plain_digits(timestamp: str) -> None:
    """Two parsers that differ would sign different messages."""
    key = StandardSignature([NEW])
    mac = base64.b64encode(_mac(timestamp)).decode()
    headers = {"webhook-id": "evt_1", "webhook-timestamp": timestamp, "webhook-signature": f"v1,{mac}"}
    assert key.verify(headers, BODY, (), NOW) == Proof.WRONG


def _mac(timestamp: str) -> bytes:
    return hmac.new(NEW, f"evt_1.{timestamp}.".encode() + BODY, hashlib.sha256).digest()


WRONG_SIGNATURES = [
    "", " ", ",", "v1", "v1,", "v1,,", "v1,é", "v1,\ud800", "v1,=", "v1,AAAA", "v1,!!!!", "v1a,x", "v2,{right}",
    "{right}", "v1 {right}", "v1,{right}=", "v1,{right}\n", "v1, {right}", "V1,{right}", "v1;{right}", "v1,v1,{right}",
    "\x00", " ".join(["v1,AAAA"] * 5) + " v1,{right}",
]  # fmt: skip


@pytest.mark.parametrize("offered", WRONG_SIGNATURES)
def test_malformed_signature_is_wrong(offered: str) -> None:
    right = signed(NEW)
    mac = right["webhook-signature"].removeprefix("v1,")
    assert prove({**right, "webhook-signature": offered.replace("{right}", mac)}) == Proof.WRONG


def test_valid_signature_among_the_first_five_is_found() -> None:
    right = signed(NEW)
    others = " ".join(["v1a,AAAA", "v1,", "junk", ""])
    assert prove({**right, "webhook-signature": f"{others} {right['webhook-signature']}"}) == Proof.BODY_VERIFIED


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()),
    st.binary(max_size=100),
)
def test_arbitrary_headers_never_raise_or_verify(headers: dict[str, str], body: bytes) -> None:
    assert prove(headers, body) in {Proof.NONE, Proof.WRONG}
    assert prove({**signed(NEW), **headers}, body) in {
        Proof.WRONG,
        Proof.BODY_VERIFIED if body == BODY else Proof.WRONG,
    }


# -- secrets


def test_secret_round_trip() -> None:
    assert read_secret(write_secret(NEW)) == NEW


@pytest.mark.parametrize(
    "text", ["", "whsec_", "secret", "whsec_AAAA", "whsec_" + "A" * 31, "whsec_" + "é" * 32, "WHSEC_" + "A" * 32,
             "whsec_" + base64.b64encode(b"x" * 65).decode(), "whsec_" + "A" * 31 + "!"],
)  # fmt: skip
def test_invalid_secret_is_rejected_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"it does not begin|is not base64|its key has") as refused:
        read_secret(text)
    assert len(text) <= 6 or text.removeprefix("whsec_") not in str(refused.value)


def test_derived_key_is_stable_and_distinct() -> None:
    """It is deterministic, different from the secret, and long enough for the standard."""
    key = derived_key(b"the secret of the broker")
    assert key == derived_key(b"the secret of the broker") != derived_key(b"another one")
    assert read_secret(write_secret(key)) == key
    assert b"the secret" not in key


def test_repr_hides_the_keys() -> None:
    assert "nnn" not in repr(StandardSignature([NEW]))
