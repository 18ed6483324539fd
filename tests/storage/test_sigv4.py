"""Signatures: the examples that the S3 documentation prints, to the last digit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from storage.sigv4 import Key, quoted_path, quoted_query, signed_headers

KEY = Key(id="AKIAIOSFODNN7EXAMPLE", secret="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AT = datetime(2013, 5, 24, tzinfo=UTC)


def proof(path: str = "/", query: Mapping[str, str] | None = None, *, key: Key = KEY, **more: str) -> str:
    headers = signed_headers(
        key,
        method="GET",
        host="examplebucket.s3.amazonaws.com",
        path=path,
        query=query or {},
        at=AT,
        region="us-east-1",
        more=more,
    )
    return headers["authorization"]


@pytest.mark.parametrize(
    ("query", "signature"),
    [
        ({"lifecycle": ""}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ({"max-keys": "2", "prefix": "J"}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_examples_of_the_documentation_are_met(query: Mapping[str, str], signature: str) -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html"""
    assert proof(query=query) == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders=host;x-amz-content-sha256;x-amz-date,Signature={signature}"
    )


def test_further_headers_are_signed() -> None:
    """The "GET Object" example of the same page."""
    said = proof("/test.txt", range="bytes=0-9")
    assert "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date," in said
    assert said.endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_a_session_token_is_signed() -> None:
    said = proof(key=Key(id=KEY.id, secret=KEY.secret, token="token"))
    assert "x-amz-security-token" in said


def test_a_query_is_sent_as_it_is_signed() -> None:
    assert quoted_query({"uploads": "", "prefix": "a b/ä+~", "A": "="}) == "A=%3D&prefix=a%20b%2F%C3%A4%2B~&uploads="
    assert quoted_path("/bucket/a b/ä+~.x") == "/bucket/a%20b/%C3%A4%2B~.x"


def test_a_key_shows_no_secret() -> None:
    shown = repr(Key(id="AKIA", secret="very-secret", token="very-token"))
    assert "AKIA" in shown
    assert "very" not in shown
