"""Clients of a bucket: where it is, with which key, and how long each request may take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.store import S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential


def open_bucket(
    bucket: str,
    endpoint: str | None,
    region: str,
    credential: Callable[[], S3Credential] | None,
    *,
    attempt: timedelta,
    read: timedelta | None = None,
    connect: float,
    retries: int,
    retry_seconds: float,
) -> S3Store:
    """Return a client; obstore takes what is not given from the environment (roles, web identities, proxies)."""
    # AWS expects the bucket in the host name; its certificates do not cover a bucket with dots
    hosted = endpoint is None and "." not in bucket
    # always set: obstore would use an empty environment variable as the address
    where = endpoint or f"https://{f'{bucket}.' if hosted else ''}s3.{region}.amazonaws.com"
    config: S3Config = {
        "region": region,
        "endpoint": where,
        "aws_endpoint_url_s3": where,
        "virtual_hosted_style_request": hosted,
    }
    client: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http:"),
        "connect_timeout": timedelta(seconds=connect),
        "timeout": attempt,
    }
    if read is not None:
        client["read_timeout"] = read
    return S3Store(
        bucket,
        config=config,
        client_options=client,
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=retry_seconds)},
        # not as settings, which would be combined with a session token of the environment
        credential_provider=credential,
    )


def static_credential(
    access_key: str | None, secret_key: str | None, session_token: str | None
) -> Callable[[], S3Credential] | None:
    """Return a provider of the given key, or None without one. Its repr does not contain the key."""
    if not access_key or not secret_key:
        return None
    token = session_token or None

    def credential() -> S3Credential:
        return {"access_key_id": access_key, "secret_access_key": secret_key, "token": token, "expires_at": None}

    return credential
