"""Providers over HTTP: load, limits and circuit of every key, pause and resume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from broker.api.http.endpoint import Endpoint, Parameter, json_success
from broker.api.http.responses import DataResponse, data_response, json_response
from broker.presenter import Moment, OneOf, ResponseModel
from broker.tasks.provider_admin import KeyReport, ProviderAdmin, ProviderReport

_PROVIDER: Final = Parameter("name", "path", "name of a provider in use")


class KeyData(ResponseModel):
    key_id: Annotated[str, Field(description="a hash of the key, as attempts store it")]
    circuit: Annotated[
        str,
        OneOf(("closed", "half_open", "open", "set_aside")),
        Field(description="set_aside: refused, or its account is empty; it waits for the operator"),
    ]
    set_aside: bool
    cooldown_until: Annotated[Moment | None, Field(description="nothing is submitted with this key before")]
    cooldown_reason: Annotated[str | None, Field(description="error code of the last failed submission")]
    in_flight: Annotated[int, Field(description="jobs that occupy a slot")]
    concurrency: Annotated[int, Field(description="limit of `inFlight`")]
    submitted: Annotated[int, Field(description="in the last 10 seconds")]
    creates_per_10s: Annotated[int, Field(alias="createsPer10s", description="limit of `submitted`")]
    balance: Annotated[float | None, Field(description="in the unit of the provider; null: not known")]
    attempts: Annotated[int, Field(description="that ended, of the last hour; without errors of the order itself")]
    error_rate: Annotated[float | None, Field(ge=0, le=1, description="of these attempts; null without any")]

    @classmethod
    def from_report(cls, key: KeyReport) -> KeyData:
        attempts = key.recent_attempts
        rate = round(key.recent_errors / attempts, 4) if attempts else None
        return cls.from_object(key, set_aside=key.circuit == "set_aside", attempts=attempts, error_rate=rate)


class ProviderData(ResponseModel):
    name: str
    base_url: str
    models: list[str]
    available: Annotated[bool, Field(description="it takes orders now")]
    reason: Annotated[str | None, Field(description="why it takes none: `paused`, or an error code")]
    paused: Annotated[bool, Field(description="by the operator, for all processes")]
    callbacks_signed: Annotated[bool, Field(description="false: its callbacks have their token alone")]
    unit: Annotated[str | None, Field(description="of prices and balances")]
    keys: list[KeyData]

    @classmethod
    def from_report(cls, report: ProviderReport) -> ProviderData:
        return cls.from_object(
            report,
            models=list(report.models),
            available=report.unavailable_because is None,
            reason=report.unavailable_because,
            paused=report.is_paused,
            keys=[KeyData.from_report(key) for key in report.keys],
        )


class ProviderList(ResponseModel):
    success: Literal[True]
    data: Annotated[list[ProviderData], Field(description="those in use, the preferred one first")]


@dataclass(frozen=True, kw_only=True)
class ProviderRoutes:
    providers: ProviderAdmin

    def endpoints(self) -> list[Endpoint]:
        operator = partial(Endpoint, access="admin", tag="operators")
        single = partial(operator, parameters=(_PROVIDER,), errors=("not_found",))
        listed = json_success("every provider in use", ProviderList)
        provider = json_success("the provider", DataResponse[ProviderData])
        path = "/api/providers/{name}"
        return [
            operator("GET", "/api/providers", self.list_providers, responses={200: listed}),
            single("GET", path, self.get_provider, responses={200: provider}),
            single("POST", f"{path}/pause", self.pause_provider, responses={200: provider}),
            single("POST", f"{path}/resume", self.resume_provider, responses={200: provider}),
        ]

    async def list_providers(self, _: Request) -> Response:
        """List the providers in use with the load of every key.

        Keys are named by their ids.
        """
        data = [ProviderData.from_report(report) for report in await self.providers.list_reports()]
        return json_response(ProviderList(success=True, data=data).to_document())

    async def get_provider(self, request: Request) -> Response:
        """Get a provider with the load of every key."""
        return self._respond(await self.providers.get_report(request.path_params["name"]))

    async def pause_provider(self, request: Request) -> Response:
        """Pause a provider.

        Nothing more is submitted to it, by any process; its running jobs go on. Queued orders go to another candidate,
        or wait.
        """
        return self._respond(await self.providers.pause(request.path_params["name"]))

    async def resume_provider(self, request: Request) -> Response:
        """Resume a provider.

        Its cooldowns end, too: a key that was set aside is tried again at once.
        """
        return self._respond(await self.providers.resume(request.path_params["name"]))

    def _respond(self, report: ProviderReport) -> Response:
        return data_response(ProviderData.from_report(report))
