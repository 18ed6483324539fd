"""The user's own key at Replicate, as the image service has it: set, seen to be there, removed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from broker.accounts.provider_keys import MAX_KEY_CHARACTERS, ProviderKeyService
from broker.api.http.endpoint import Endpoint, json_success, principal_of
from broker.api.http.request_body import RequestModel, read_json_model
from broker.api.http.responses import json_response, requested_language
from broker.api.shared.logins import MAX_LOGIN_BYTES
from broker.api.shared.models import SnakeResponseModel
from broker.errors import ApiError
from broker.i18n import Messages
from broker.presenter import Absent

PROVIDER: Final = "replicate"


class ImageServiceKeyRequest(RequestModel):
    """A key; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    api_key: Annotated[SecretStr, Field(min_length=1, max_length=2 * MAX_KEY_CHARACTERS)]
    provider: Annotated[str | None, Field(description=f"{PROVIDER}, if it is given")] = None


class ImageServiceKey(SnakeResponseModel):
    """Whether there is a key; the key itself is never shown."""

    message: str
    has_key: bool
    last_four: Annotated[str | None, Field(description="the last characters of the key")]
    valid: Annotated[
        Literal["true", "unknown"] | Absent,
        Field(description="what Replicate said when it was set now; a key that it refuses is an error"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ImageServiceKeyRoutes:
    service: ProviderKeyService
    messages: Messages

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints about the key."""
        key = partial(Endpoint, path="/api/v1/users/api-key", access="caller", tag="image service")
        response = {200: json_success("whether there is a key", ImageServiceKey)}
        return [
            key("GET", handler=self.image_service_get_key, responses=response),
            key(
                "PUT",
                handler=self.image_service_set_key,
                request={"application/json": ImageServiceKeyRequest},
                responses=response,
                errors=("invalid_request", "payload_too_large", "rate_limited", "conflict"),
            ),
            key("DELETE", handler=self.image_service_remove_key, responses=response, errors=("conflict",)),
        ]

    async def image_service_get_key(self, request: Request) -> Response:
        """Check whether the user has an own key at Replicate."""
        keys = await self.service.list_keys(principal_of(request).owner)
        last_four = next((key.last_four for key in keys if key.provider == PROVIDER), None)
        return self._respond(request, "own_key_absent" if last_four is None else "own_key_present", last_four)

    async def image_service_set_key(self, request: Request) -> Response:
        """Set the user's own key at Replicate.

        Replicate is asked whether it accepts the key; one that it refuses is not stored (400). It is stored sealed, and
        used for the user's orders only, before the operator's keys.
        """
        body = await read_json_model(request, MAX_LOGIN_BYTES, ImageServiceKeyRequest)
        if body.provider not in {None, PROVIDER}:
            raise ApiError(
                "invalid_request",
                "This route keeps the key at Replicate: PUT /api/me/provider-keys/{provider} sets one at another.",
                field="provider",
            )
        secret = SecretStr(body.api_key.get_secret_value().strip())
        key, tested = await self.service.set_key(principal_of(request).owner, PROVIDER, secret)
        if tested.valid == "true":
            return self._respond(request, "own_key_stored", key.last_four, valid="true")
        return self._respond(request, "own_key_not_tested", key.last_four, valid="unknown")

    async def image_service_remove_key(self, request: Request) -> Response:
        """Remove the user's own key at Replicate.

        Nothing more is ordered with it. Without a key nothing happens.
        """
        try:
            await self.service.remove_key(principal_of(request).owner, PROVIDER)
        except ApiError as error:
            if error.code != "not_found":
                raise
        return self._respond(request, "own_key_absent", None)

    def _respond(
        self,
        request: Request,
        message: str,
        last_four: str | None,
        *,
        valid: Literal["true", "unknown"] | None = None,
    ) -> Response:
        answer = ImageServiceKey(
            message=self.messages.get(message, requested_language(request)),
            has_key=last_four is not None,
            last_four=last_four,
            valid=valid,
        )
        return json_response(answer.to_document())
