"""Belongings of the sender of a request beside its tasks: the secret of its webhooks."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from broker.api.accounts.schemas import WebhookSecretData
from broker.api.http.endpoint import Endpoint, json_success, principal_of
from broker.api.http.responses import DataResponse, data_response
from broker.notifications.signing import WebhookKeys


@dataclass(frozen=True, kw_only=True)
class OwnDataRoutes:
    signing_keys: WebhookKeys

    def endpoints(self) -> list[Endpoint]:
        return [
            Endpoint(
                "GET",
                "/api/me/webhook-secret",
                self.get_own_webhook_secret,
                access="caller",
                tag="accounts",
                responses={200: json_success("the secret", DataResponse[WebhookSecretData])},
            )
        ]

    async def get_own_webhook_secret(self, request: Request) -> Response:
        """Get the secret that signs your webhooks.

        Each account has its own, and so has the operator.
        """
        return data_response(WebhookSecretData(secret=self.signing_keys.secret_of(principal_of(request).owner)))
