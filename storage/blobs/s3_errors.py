"""Causes of S3 errors, and the setting that cures each. No I/O.

obstore's messages contain addresses, and responses that may repeat the key: only the status and the error code leave
this file.
"""

from __future__ import annotations

import re
from typing import Final

from storage.errors import StorageError, StorageFull

ENDPOINT: Final = "AWS_ENDPOINT_URL (or MINIO_ENDPOINT)"
ID: Final = "AWS_ACCESS_KEY_ID (or MINIO_ACCESS_KEY)"
SECRET: Final = "AWS_SECRET_ACCESS_KEY (or MINIO_SECRET_KEY)"  # noqa: S105

_STATUS: Final = re.compile(r"status code: ([0-9]{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")

_NO_KEY: Final = f"set {ID} and {SECRET}"
_OTHER_REGION: Final = "set AWS_REGION to the region of the bucket in BROKER_BLOB_URL"
LATE: Final = f"it did not answer in time: try again later, or see that {ENDPOINT} is right"
_OTHER: Final = "look at its own log, then try again"
_BROKEN: Final = f"the connection broke off: try again, and see that {ENDPOINT} names a store that speaks S3"

_CURES_BY_RESPONSE: Final = (
    ("InvalidAccessKeyId", f"set {ID} to a key that exists in this store"),
    ("SignatureDoesNotMatch", f"set {SECRET} to the secret of the key in {ID}"),
    ("401", _NO_KEY),
    (
        "403 AccessDenied AllAccessDisabled AccountProblem",
        f"let the key of {ID} read, write, list and delete in the bucket of BROKER_BLOB_URL",
    ),
    ("ExpiredToken InvalidToken", "renew AWS_SESSION_TOKEN together with its key, or unset it"),
    ("404 NoSuchBucket InvalidBucketName", "make the bucket, or name the right one in BROKER_BLOB_URL"),
    ("301 307 PermanentRedirect TemporaryRedirect AuthorizationHeaderMalformed", _OTHER_REGION),
    ("IllegalLocationConstraintException InvalidRegion", _OTHER_REGION),
    ("RequestTimeTooSkewed RequestExpired", "set the clock of this machine"),
    ("429 503 SlowDown ServiceUnavailable", "it is busy: try again later"),
)
_CURES: Final = {word: cure for words, cure in _CURES_BY_RESPONSE for word in words.split()}
"""Cure by error code or status."""
_FULL: Final = {"507", "QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}

_CURES_BY_TEXT: Final = (
    ("169.254.", _NO_KEY),
    ("credential", _NO_KEY),
    ("Received redirect without LOCATION", _OTHER_REGION),
    ("ertificate", f"its certificate is not trusted here: see that {ENDPOINT} names it as the certificate does"),
    ("kind: Connect", f"see that {ENDPOINT} names a store that runs, with http or https as it speaks"),
    ("TimedOut", LATE),
)
"""Cure by the first text found in a message of obstore without an error code."""


def parse_response(text: str) -> tuple[str | None, str | None]:
    """Return the status and error code in a message of obstore, None without one."""
    status, code = _STATUS.search(text), _CODE.search(text)
    return status[1] if status else None, code[1] if code else None


def storage_error(text: str) -> StorageError:
    """Translate a message of obstore."""
    status, code = parse_response(text)
    if code is None:
        for sign, cure in _CURES_BY_TEXT:
            if sign in text:
                return storage_error_for(cure)
    if status is None and code is None:
        return storage_error_for(_BROKEN)
    reason = " ".join(word for word in (status, code) if word)
    if {status, code} & _FULL:
        cure = "make room in the bucket of BROKER_BLOB_URL, raise its quota, or shorten BROKER_RETENTION_HOURS"
        return StorageFull(f"no space is left for images ({reason}): {cure}")
    return storage_error_for(_CURES.get(code or "") or _CURES.get(status or "") or _OTHER, f" ({reason})")


def storage_error_for(cure: str, reason: str = "") -> StorageError:
    return StorageError(f"the image store cannot do it now{reason}: {cure}")
