"""All checks, in the order of the report."""

from __future__ import annotations

from typing import Final

from broker.doctor import access, provider, reachability, storage
from broker.doctor.findings import Check

_PROVIDER: Final = frozenset({"api_key", "api_url", "upload_url"})
_DATA: Final = frozenset({"data_dir"})

CHECKS: Final = (
    Check(name="Python", run=access.python),
    Check(name="provider", run=provider.provider, needs=_PROVIDER),
    Check(name="key", run=provider.account, needs=_PROVIDER),
    Check(name="file upload", run=provider.upload, needs=_PROVIDER),
    Check(
        name="public address",
        run=reachability.check_inbound,
        needs=frozenset({"host", "port", "secret_key", "webhook_base_url", "tunnel_api"}),
    ),
    Check(name="webhook key", run=access.signatures, needs=frozenset({"webhook_key"})),
    Check(name="access", run=access.access, needs=frozenset({"host", "api_keys", "allow_anonymous", "cors_origins"})),
    Check(name="secret", run=storage.secret, needs=_DATA | {"secret_key"}),
    Check(name="database", run=storage.database, needs=_DATA | {"database_url", "database_listen_url", "lease"}),
    Check(name="images", run=storage.images, needs=_DATA | {"blob_url"}),
    Check(name="disk", run=storage.disks, needs=_DATA | {"database_url", "blob_url"}),
)
