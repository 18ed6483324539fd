"""Every check, in the order of the report."""

from __future__ import annotations

from typing import Final

from broker.doctor import doors, keeping, provider, reach
from broker.doctor.findings import Check

_PROVIDER: Final = frozenset({"api_key", "api_url", "upload_url"})
_DATA: Final = frozenset({"data_dir"})

CHECKS: Final = (
    Check(name="Python", look=doors.python),
    Check(name="provider", look=provider.provider, needs=_PROVIDER),
    Check(name="key", look=provider.account, needs=_PROVIDER),
    Check(name="file upload", look=provider.upload, needs=_PROVIDER),
    Check(
        name="public address",
        look=reach.way_in,
        needs=frozenset({"host", "port", "secret_key", "webhook_base_url", "tunnel_api"}),
    ),
    Check(name="webhook key", look=doors.signatures, needs=frozenset({"webhook_key"})),
    Check(name="access", look=doors.access, needs=frozenset({"host", "api_keys", "allow_anonymous", "cors_origins"})),
    Check(name="secret", look=keeping.secret, needs=_DATA | {"secret_key"}),
    Check(name="database", look=keeping.database, needs=_DATA | {"database_url", "database_listen_url", "lease"}),
    Check(name="images", look=keeping.images, needs=_DATA | {"blob_url"}),
    Check(name="disk", look=keeping.disks, needs=_DATA | {"database_url", "blob_url"}),
)
