"""Messages of S3 errors: the cure, and nothing else of the original message."""

from __future__ import annotations

import pytest

from storage.blobs.s3_errors import storage_error
from storage.errors import StorageFull

PUT = "Generic S3 error: Error performing PUT https://s3.example.com/bucket/x in 3ms - "


@pytest.mark.parametrize(
    ("message", "cure"),
    [
        (
            "Error performing PUT http://169.254.169.254/latest/api/token - status code: 403 Forbidden: ",
            "set AWS_ACCESS",
        ),
        (PUT + "the credential file is gone", "set AWS_ACCESS"),
        (PUT + "status code: 403: <Code>AccessDenied</Code> for this credential", "list and delete"),
        (PUT + "Received redirect without LOCATION, this normally indicates a wrong region", "AWS_REGION"),
        (PUT + "kind: Connect, invalid peer certificate: UnknownIssuer", "certificate"),
        (PUT + "kind: Connect", "AWS_ENDPOINT_URL"),
        (PUT + "kind: Timeout, source: TimedOut", "in time"),
        (PUT + "kind: Request, source: Os { code: 32 }", "broke off"),
        (PUT + "status code: 401: ", "set AWS_ACCESS"),
        (PUT + "status code: 429: ", "busy"),
        (PUT + "status code: 418: ", "its own log"),
    ],
)
def test_message_is_replaced_by_its_cure(message: str, cure: str) -> None:
    translated = str(storage_error(message))
    assert cure in translated
    assert "example.com" not in translated
    assert "169" not in translated


def test_status_507_is_storage_full() -> None:
    """Uploads get another HTTP status in this case."""
    assert isinstance(storage_error(PUT + "status code: 507: "), StorageFull)
