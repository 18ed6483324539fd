"""Sealed texts: they open only where they were sealed, unchanged, and with a known key."""

from __future__ import annotations

import base64

import pytest
from pydantic import SecretStr

from broker.accounts.sealing import KeyRing, SealBroken, Sealed

RING = KeyRing.from_secrets(b"the secret of this broker")
SECRET = SecretStr("canary-0123456789-provider-key")
PLACE = ("provider_keys", "pkey_1", "user_1", "kie")


def opens(sealed: Sealed, *context: str, ring: KeyRing = RING) -> bool:
    try:
        ring.open(sealed, *context)
    except SealBroken as error:
        assert "canary" not in str(error)
        return False
    return True


def test_sealed_text_opens_at_its_place_and_is_another_one_each_time() -> None:
    one, two = RING.seal(SECRET, *PLACE), RING.seal(SECRET, *PLACE)
    assert RING.open(one, *PLACE).get_secret_value() == SECRET.get_secret_value()
    assert one.text != two.text
    assert one.key_id == two.key_id == RING.current.id
    assert "canary" not in f"{one!r}{RING!r}{base64.b64decode(one.text)!r}"


@pytest.mark.parametrize("place", range(len(PLACE)))
def test_sealed_text_does_not_open_at_another_place(place: int) -> None:
    sealed = RING.seal(SECRET, *PLACE)
    moved = [*PLACE]
    moved[place] += "2"
    assert not opens(sealed, *moved)
    assert not opens(sealed, *PLACE[:-1])
    joined = RING.seal(SECRET, "a", "bc")
    assert not opens(joined, "ab", "c"), "the parts of a place are not joined"


def test_no_changed_byte_and_no_other_spelling_opens() -> None:
    sealed = RING.seal(SECRET, *PLACE)
    box = base64.b64decode(sealed.text)
    for at in range(len(box)):
        for bit in range(8):
            changed = box[:at] + bytes([box[at] ^ 1 << bit]) + box[at + 1 :]
            assert not opens(Sealed(text=base64.b64encode(changed).decode(), key_id=sealed.key_id), *PLACE)
    for at in range(len(sealed.text)):
        for letter in "Aa1/=\n é":
            text = sealed.text[:at] + letter + sealed.text[at + 1 :]
            assert text == sealed.text or not opens(Sealed(text=text, key_id=sealed.key_id), *PLACE)
    for text in ("", "AAAA", sealed.text[:-4], sealed.text + "AAAA", f" {sealed.text}", sealed.text[:16]):
        assert not opens(Sealed(text=text, key_id=sealed.key_id), *PLACE)


def test_only_known_keys_open_and_the_current_one_seals() -> None:
    sealed = RING.seal(SECRET, *PLACE)
    later = KeyRing.from_secrets(b"the secret after it", [b"the secret of this broker"])
    other = KeyRing.from_secrets(b"the secret after it")
    assert opens(sealed, *PLACE, ring=later)
    assert not opens(sealed, *PLACE, ring=other)
    assert not opens(Sealed(text=sealed.text, key_id=other.current.id), *PLACE, ring=later), "the key is authenticated"
    again = later.seal(SECRET, *PLACE)
    assert opens(again, *PLACE, ring=other)
    assert not opens(again, *PLACE)
    assert len({RING.current.id, later.current.id}) == 2
