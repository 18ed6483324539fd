"""Clients of a bucket: where it is, with which key, and how long each request may take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from obstore.store import S3Store

from storage.blobs.store import Bucket

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential


def open_bucket(
    bucket: Bucket,
    *,
    attempt: timedelta,
    read: timedelta | None = None,
    connect: float,
    retries: int,
    retry_seconds: float,
) -> S3Store:
    """Return a client; obstore takes what is not given from the environment (roles, web identities, proxies)."""
    endpoint = bucket.endpoint and bucket.endpoint.rstrip("/")
    # AWS expects the bucket in the host name; its certificates do not cover a bucket with dots
    hosted = endpoint is None and "." not in bucket.name
    # always set: obstore would use an empty environment variable as the address
    where = endpoint or f"https://{f'{bucket.name}.' if hosted else ''}s3.{bucket.region}.amazonaws.com"
    config: S3Config = {
        "region": bucket.region,
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
        bucket.name,
        config=config,
        client_options=client,
        retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=retry_seconds)},
        # not as settings, which would be combined with a session token of the environment
        credential_provider=_static_credential(bucket),
    )


def _static_credential(bucket: Bucket) -> Callable[[], S3Credential] | None:
    """Return a provider of the given key, or None without one. Its repr does not contain the key."""
    access_key, secret_key, token = bucket.access_key, bucket.secret_key, bucket.session_token or None
    if not access_key or not secret_key:
        return None

    def credential() -> S3Credential:
        return {"access_key_id": access_key, "secret_access_key": secret_key, "token": token, "expires_at": None}

    return credential
