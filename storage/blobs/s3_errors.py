"""Causes of S3 errors, and the setting that cures each. No I/O.

obstore's messages contain addresses, and responses that may repeat the key: only the status and the error code leave
this file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from storage.errors import StorageError, StorageFull

STATUS: Final = re.compile(r"status code: ([0-9]{3})")
CODE: Final = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")

ENDPOINT: Final = "AWS_ENDPOINT_URL (or MINIO_ENDPOINT)"
ID: Final = "AWS_ACCESS_KEY_ID (or MINIO_ACCESS_KEY)"
SECRET: Final = "AWS_SECRET_ACCESS_KEY (or MINIO_SECRET_KEY)"  # noqa: S105

_NO_KEY: Final = f"set {ID} and {SECRET}"
_NO_BUCKET: Final = "make the bucket, or name the right one in BROKER_BLOB_URL"
_NO_RIGHT: Final = f"let the key of {ID} read, write, list and delete in the bucket of BROKER_BLOB_URL"
_OTHER_REGION: Final = "set AWS_REGION to the region of the bucket in BROKER_BLOB_URL"
_OLD_TOKEN: Final = "renew AWS_SESSION_TOKEN together with its key, or unset it"  # noqa: S105
_BUSY: Final = "it is busy: try again later"
_FULL: Final = "make room in the bucket of BROKER_BLOB_URL, raise its quota, or shorten BROKER_RETENTION_HOURS"
_LATE: Final = f"it did not answer in time: try again later, or see that {ENDPOINT} is right"
_BROKEN: Final = f"the connection broke off: try again, and see that {ENDPOINT} names a store that speaks S3"
_UNREACHABLE: Final = f"see that {ENDPOINT} names a store that runs, with http or https as it speaks"

CURES: Final = {
    "InvalidAccessKeyId": f"set {ID} to a key that exists in this store",
    "SignatureDoesNotMatch": f"set {SECRET} to the secret of the key in {ID}",
    "AccessDenied": _NO_RIGHT,
    "AllAccessDisabled": _NO_RIGHT,
    "AccountProblem": _NO_RIGHT,
    "ExpiredToken": _OLD_TOKEN,
    "InvalidToken": _OLD_TOKEN,
    "NoSuchBucket": _NO_BUCKET,
    "InvalidBucketName": _NO_BUCKET,
    "PermanentRedirect": _OTHER_REGION,
    "TemporaryRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "InvalidRegion": _OTHER_REGION,
    "RequestTimeTooSkewed": "set the clock of this machine",
    "RequestExpired": "set the clock of this machine",
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
}
CURES_BY_STATUS: Final = {
    301: _OTHER_REGION,
    307: _OTHER_REGION,
    401: _NO_KEY,
    403: _NO_RIGHT,
    404: _NO_BUCKET,
    429: _BUSY,
    503: _BUSY,
}
FULL: Final = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"})

# cure by the first text found in a message of obstore without an error code
SIGNS: Final = (
    ("169.254.", _NO_KEY),
    ("credential", _NO_KEY),
    ("Received redirect without LOCATION", _OTHER_REGION),
    ("ertificate", f"its certificate is not trusted here: see that {ENDPOINT} names it as the certificate does"),
    ("kind: Connect", _UNREACHABLE),
    ("TimedOut", _LATE),
)


@dataclass(frozen=True, kw_only=True)
class S3Response:
    """Status and error code of the response, None without one."""

    status: int | None = None
    code: str | None = None


def parse_response(text: str) -> S3Response:
    """Return the status and error code in a message of obstore."""
    status, code = STATUS.search(text), CODE.search(text)
    return S3Response(status=int(status[1]) if status else None, code=code[1] if code else None)


def storage_error(text: str) -> StorageError:
    """Translate a message of obstore."""
    found = parse_response(text)
    if found.code:
        return response_error(found)
    for sign, cure in SIGNS:
        if sign in text:
            return _error(None, cure)
    return response_error(found) if found.status else _error(None, _BROKEN)


def response_error(found: S3Response) -> StorageError:
    if found.code in FULL or found.status == 507:
        return StorageFull(f"no space is left for images ({_reason(found)}): {_FULL}")
    cure = CURES.get(found.code or "") or CURES_BY_STATUS.get(found.status or 0)
    return _error(_reason(found), cure or "look at its own log, then try again")


def timed_out() -> StorageError:
    return _error(None, _LATE)


def invalid_key() -> StorageError:
    return _error(
        None, "remove the objects with an empty part, `.` or `..` in their key from the prefix of BROKER_BLOB_URL"
    )


def _reason(found: S3Response) -> str:
    return " ".join(str(part) for part in (found.status, found.code) if part)


def _error(reason: str | None, cure: str) -> StorageError:
    return StorageError(f"the image store cannot do it now{f' ({reason})' if reason else ''}: {cure}")
