"""One's own keys at providers: set, shown by their last characters, removed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, get_args

from pydantic import ConfigDict, Field, SecretStr
from starlette.requests import Request
from starlette.responses import Response

from broker.accounts.provider_keys import MAX_KEY_CHARACTERS, MIN_KEY_CHARACTERS, ProviderKeyService
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success, principal_of
from broker.api.http.request_body import RequestModel, read_json_model
from broker.api.http.responses import DataResponse, data_response
from broker.presenter import Moment, OneOf, ResponseModel
from broker.tasks.accounts.reports import KeyState, OwnKeyReport, OwnKeys

MAX_BODY_BYTES: Final = 16 * 1024
_PROVIDER: Final = Parameter("provider", "path", "name of the provider, like kie or replicate")


class ProviderKeyRequest(RequestModel):
    model_config = ConfigDict(extra="forbid")

    key: Annotated[
        SecretStr, Field(description=f"{MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} visible ASCII characters")
    ]


class OwnKeyData(ResponseModel):
    provider: str
    last_four: Annotated[str, Field(description="the last characters of the key; the rest is never shown")]
    verified: Annotated[bool, Field(description="the provider accepted it when it was set")]
    state: Annotated[
        str,
        OneOf(get_args(KeyState)),
        Field(
            description="refused, no_credits: said by the provider at an order; limited: it takes no orders until "
            "limitedUntil; unreadable: set it again"
        ),
    ]
    limited_until: Moment | None
    in_flight: Annotated[int, Field(description="your jobs there")]
    concurrency: Annotated[int, Field(description="the most of them")]
    balance: Annotated[
        float | None, Field(description="of the account, in the provider's unit; null in lists, and where unknown")
    ]
    unit: str | None
    created_at: Moment

    @classmethod
    def from_report(cls, report: OwnKeyReport) -> OwnKeyData:
        return cls.from_object(report, verified=report.is_verified)


class KeyTestedData(OwnKeyData):
    valid: Annotated[
        str,
        OneOf(("true", "unknown")),
        Field(description="what the provider says; a key that it refuses is no success"),
    ]
    reason: Annotated[str, Field(description="a sentence about it")]


class OwnKeysData(ResponseModel):
    keys: list[OwnKeyData]
    providers: Annotated[list[str], Field(description="those at which you can have a key, the preferred one first")]


@dataclass(frozen=True, kw_only=True)
class ProviderKeyRoutes:
    service: ProviderKeyService
    own_keys: OwnKeys

    def endpoints(self) -> list[Endpoint]:
        caller = partial(Endpoint, access="caller", tag="accounts")
        path = "/api/me/provider-keys"
        one = partial(caller, path=f"{path}/{{provider}}", parameters=(_PROVIDER,))
        return [
            caller(
                "GET",
                path,
                self.list_provider_keys,
                responses={200: json_success("your keys", DataResponse[OwnKeysData])},
            ),
            one(
                method="GET",
                handler=self.get_provider_key,
                responses={200: json_success("the key", DataResponse[OwnKeyData])},
                errors=("not_found",),
            ),
            one(
                method="PUT",
                handler=self.set_provider_key,
                request={"application/json": ProviderKeyRequest},
                responses={200: json_success("the key is stored", DataResponse[KeyTestedData])},
                errors=("invalid_request", "payload_too_large", "not_found", "rate_limited", "conflict"),
            ),
            one(
                method="DELETE",
                handler=self.remove_provider_key,
                responses={204: SuccessResponse(text="nothing more is ordered with it")},
                errors=("not_found", "conflict"),
            ),
        ]

    async def list_provider_keys(self, request: Request) -> Response:
        """List your own keys at providers.

        Your orders go to them first, within their own limits, and you pay them.
        """
        reports = await self.own_keys.list_reports(principal_of(request).owner)
        data = OwnKeysData(
            keys=[OwnKeyData.from_report(report) for report in reports], providers=list(self.service.providers)
        )
        return data_response(data)

    async def get_provider_key(self, request: Request) -> Response:
        """Get your own key at a provider, with the balance of its account."""
        report = await self.own_keys.get_report(principal_of(request).owner, request.path_params["provider"])
        return data_response(OwnKeyData.from_report(report))

    async def set_provider_key(self, request: Request) -> Response:
        """Set your own key at a provider.

        The provider is asked whether it accepts the key; one that it refuses is not stored (400). It is stored sealed,
        used for your orders only, before the operator's keys, and shown by its last four characters. Jobs that the key
        before it has started are finished with that one.
        """
        owner, provider = principal_of(request).owner, request.path_params["provider"]
        body = await read_json_model(request, MAX_BODY_BYTES, ProviderKeyRequest)
        _, tested = await self.service.set_key(owner, provider, body.key)
        (report,) = [one for one in await self.own_keys.list_reports(owner) if one.provider == provider]
        return data_response(
            KeyTestedData.from_object(report, verified=report.is_verified, valid=tested.valid, reason=tested.reason)
        )

    async def remove_provider_key(self, request: Request) -> Response:
        """Remove your own key at a provider.

        Nothing more is ordered with it. Queued orders go to another provider, or fail. Jobs that it has started are
        finished with it; then it is deleted.
        """
        await self.service.remove_key(principal_of(request).owner, request.path_params["provider"])
        return Response(status_code=204)
