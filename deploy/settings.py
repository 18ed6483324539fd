"""Check of .env for the profile `full`: names each wrong or missing variable with its cure, and never shows a value.

The service `settings` of compose.yml runs it before any other service of the profile starts.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

NEEDED = {
    "NANO_BANANA_API_KEY": (r"\S+", "your kie.ai key; the sandbox provider is for one process only"),
    "SECRET_KEY": (r".{16,}", "16 characters or more, the same for all processes: openssl rand -hex 32"),
    "POSTGRES_PASSWORD": (r"[A-Za-z0-9]+", "letters and digits, because it is part of a URL: openssl rand -hex 24"),
    "OBJECTS_PASSWORD": (r"[A-Za-z0-9]+", "letters and digits: openssl rand -hex 24"),
    "DATABASE_URL": (r"postgres(ql)?://.+", "postgresql://broker:${POSTGRES_PASSWORD}@postgres:5432/broker"),
    "BROKER_BLOB_URL": (r"s3://.+", "s3://images/broker"),
}


def find_errors(env: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence per wrong or missing variable."""
    for name, (shape, cure) in NEEDED.items():
        if not re.fullmatch(shape, env.get(name, "")):
            yield f"{name} {'does not fit' if env.get(name) else 'is missing'}: {cure}"
    database = urlsplit(env.get("DATABASE_URL", ""))
    if database.hostname == "postgres" and database.password != env.get("POSTGRES_PASSWORD"):
        yield "DATABASE_URL has another password than POSTGRES_PASSWORD: use ${POSTGRES_PASSWORD} on a line below it"
    if first_value(env, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MINIO_ENDPOINT") == "http://objects:8333":
        yield from find_store_errors(env)


def find_store_errors(env: Mapping[str, str]) -> Iterator[str]:
    """Yield the errors for the store of the profile, which has one key and one bucket and is not public."""
    if first_value(env, "AWS_ACCESS_KEY_ID", "MINIO_ACCESS_KEY") != "broker":
        yield "AWS_ACCESS_KEY_ID (or MINIO_ACCESS_KEY) belongs to another store: remove it, or set its endpoint"
    if first_value(env, "AWS_SECRET_ACCESS_KEY", "MINIO_SECRET_KEY") != env.get("OBJECTS_PASSWORD"):
        yield "AWS_SECRET_ACCESS_KEY (or MINIO_SECRET_KEY) belongs to another store: remove it, or set its endpoint"
    if env.get("BROKER_BLOB_URL", "").startswith("s3://") and urlsplit(env["BROKER_BLOB_URL"]).netloc != "images":
        yield "BROKER_BLOB_URL names a bucket that does not exist: s3://images/broker"
    if env.get("BROKER_BLOB_LINKS", "none") not in {"", "none"}:
        yield "BROKER_BLOB_LINKS does not fit: none; callers cannot reach the store"


def first_value(env: Mapping[str, str], *names: str) -> str:
    """Return the first value that is not empty, as the broker does."""
    return next((env[name] for name in names if env.get(name)), "")


if wrong := list(find_errors(os.environ)):
    sys.exit("\n".join([".env does not fit the profile full (docs/deploying.md):", *wrong]))
