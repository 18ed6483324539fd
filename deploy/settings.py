"""Whether .env fits the profile `full`: names every variable that does not, with its cure. Values are never shown.

The service `settings` of compose.yml runs this before anything else of the profile starts.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

NEEDED = {
    "NANO_BANANA_API_KEY": (r"\S+", "your kie.ai key; the sandbox provider is for one process only"),
    "SECRET_KEY": (r".{16,}", "16 characters or more, the same for all processes: openssl rand -hex 32"),
    "POSTGRES_PASSWORD": (r"[A-Za-z0-9]+", "letters and digits, it is part of an address: openssl rand -hex 24"),
    "OBJECTS_PASSWORD": (r"[A-Za-z0-9]+", "letters and digits: openssl rand -hex 24"),
    "DATABASE_URL": (r"postgres(ql)?://.+", "postgresql://broker:${POSTGRES_PASSWORD}@postgres:5432/broker"),
    "BROKER_BLOB_URL": (r"s3://.+", "s3://images/broker"),
}


def complaints(env: Mapping[str, str]) -> Iterator[str]:
    for name, (shape, cure) in NEEDED.items():
        if not re.fullmatch(shape, env.get(name, "")):
            yield f"{name} {'does not fit' if env.get(name) else 'is missing'}: {cure}"
    database = urlsplit(env.get("DATABASE_URL", ""))
    if database.hostname == "postgres" and database.password != env.get("POSTGRES_PASSWORD"):
        yield "DATABASE_URL has another password than POSTGRES_PASSWORD: put it below that, with ${POSTGRES_PASSWORD}"
    if first(env, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT") == "http://objects:8333":
        yield from complaints_about_our_store(env)


def complaints_about_our_store(env: Mapping[str, str]) -> Iterator[str]:
    """It has one key and one bucket, and no way in for callers."""
    if first(env, "AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY") != "broker":
        yield "AWS_ACCESS_KEY_ID (or MINIO_ACCESS_KEY) is that of another store: take it out, or set its endpoint"
    if first(env, "AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY") != env.get("OBJECTS_PASSWORD"):
        yield "AWS_SECRET_ACCESS_KEY (or MINIO_SECRET_KEY) is that of another store: take it out, or set its endpoint"
    if env.get("BROKER_BLOB_URL", "").startswith("s3://") and urlsplit(env["BROKER_BLOB_URL"]).netloc != "images":
        yield "BROKER_BLOB_URL leads to a bucket that is not there: s3://images/broker"
    if env.get("BROKER_BLOB_LINKS", "none") not in {"", "none"}:
        yield "BROKER_BLOB_LINKS does not fit: none; callers cannot reach the store"


def first(env: Mapping[str, str], *names: str) -> str:
    """The broker takes the first of these names that is not empty."""
    return next((env[name] for name in names if env.get(name)), "")


if wrong := list(complaints(os.environ)):
    sys.exit("\n".join([".env does not fit the profile full (docs/deploying.md):", *wrong]))
