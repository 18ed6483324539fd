"""Belongings of the sender of a request: a copy of all its data, and the secret of its webhooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.api.accounts.schemas import WebhookSecretData
from broker.api.http.blob_responses import BlobResponse
from broker.api.http.endpoint import Endpoint, SuccessResponse, json_success, principal_of
from broker.api.http.responses import DataResponse, data_response
from broker.notifications.signing import WebhookKeys
from broker.privacy.export import AccountExporter

_HEADERS: Final = {
    "content-type": "application/zip",
    "content-disposition": 'attachment; filename="nano-banana-export.zip"',
    "cache-control": "no-store",
}
_ARCHIVE: Final = SuccessResponse(
    text="the archive",
    content={"application/zip": {"type": "string", "format": "binary"}},
    headers={"Content-Disposition": (True, "attachment")},
)


@dataclass(frozen=True, kw_only=True)
class OwnDataRoutes:
    exporter: AccountExporter
    signing_keys: WebhookKeys

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/api/me/export",
                self.export_own_data,
                access="caller",
                tag="accounts",
                responses={200: _ARCHIVE},
            ),
            Endpoint(
                "GET",
                "/api/me/webhook-secret",
                self.get_own_webhook_secret,
                access="caller",
                tag="accounts",
                responses={200: json_success("the secret", DataResponse[WebhookSecretData])},
            ),
        ]

    async def export_own_data(self, request: Request) -> Response:
        """Export all of one's own data.

        A ZIP archive: `data.json` has the account, tasks, conversations, keys without their secrets, sessions, uploaded
        files, webhooks and costs; images and files are beside it. It is sent while it is made.
        """
        archive = self.exporter.write_archive(principal_of(request))
        if request.method == "HEAD":
            await archive.aclose()
            return Response(headers=_HEADERS)
        return BlobResponse(archive, 200, _HEADERS)

    async def get_own_webhook_secret(self, request: Request) -> Response:
        """Get the secret that signs your webhooks.

        Each account has its own, and so has the operator.
        """
        return data_response(WebhookSecretData(secret=self.signing_keys.secret_of(principal_of(request).owner)))
