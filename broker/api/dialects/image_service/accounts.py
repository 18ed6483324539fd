"""Accounts of the image service: register, log in with tokens, refresh them, and the user of a token."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import AliasChoices, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from broker.accounts import names
from broker.accounts.logins import Login, LoginService
from broker.accounts.users import UserService
from broker.api.http.endpoint import Endpoint, json_success, principal_of
from broker.api.http.request_body import FORM_TYPES, RequestModel, read_json_model
from broker.api.http.responses import json_response
from broker.api.shared.logins import MAX_LOGIN_BYTES, PasswordText, UserNameText, read_login, token_client
from broker.api.shared.models import SnakeResponseModel
from broker.api.shared.quotas import SnakeQuotas, read_snake_quotas
from broker.clock import iso
from broker.ordering.quotas import OwnerQuotas
from broker.presenter import Moment

MAX_TOKEN_CHARACTERS: Final = 256
_BODY_ERRORS: Final = ("invalid_request", "payload_too_large")
_LOGIN_ERRORS: Final = (*_BODY_ERRORS, "forbidden", "rate_limited")


class ImageServiceRegistration(RequestModel):
    """Of a new user; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    username: UserNameText
    password: PasswordText
    email: Annotated[str | None, Field(max_length=names.MAX_EMAIL_CHARS)] = None


class ImageServiceLogin(RequestModel):
    """A user name and a password; other fields, like those of OAuth 2, are ignored."""

    model_config = ConfigDict(strict=True)

    username: Annotated[
        UserNameText,
        Field(validation_alias=AliasChoices("username_or_email", "username"), description="or `username`"),
    ]
    password: PasswordText


class ImageServiceRefresh(RequestModel):
    model_config = ConfigDict(strict=True)

    refresh_token: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN_CHARACTERS)]


class ImageServiceTokens(SnakeResponseModel):
    access_token: Annotated[str, Field(description="for `Authorization: Bearer`")]
    refresh_token: Annotated[str, Field(description="for one refresh")]
    token_type: Literal["bearer"]
    expires_in: Annotated[int, Field(description="seconds that the access token is valid")]


class ImageServiceUser(SnakeResponseModel):
    id: str
    username: Annotated[str, Field(description="of a user, or the name of a key")]
    email: str | None
    is_active: bool
    is_admin: bool
    created_at: Annotated[Moment | None, Field(description="null for keys without a user")]
    quota: SnakeQuotas


@dataclass(frozen=True, kw_only=True)
class ImageServiceAccountRoutes:
    users: UserService
    logins: LoginService
    quotas: OwnerQuotas
    origins: Collection[str]
    """Of other web sites whose pages may log in (BROKER_CORS_ORIGINS)."""

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints about accounts."""
        endpoint = partial(
            Endpoint,
            access="public",
            tag="image service",
            responses={200: json_success("the tokens of a session", ImageServiceTokens)},
        )
        return [
            endpoint(
                "POST",
                "/api/v1/auth/register",
                self.image_service_register,
                request={"application/json": ImageServiceRegistration},
                errors=(*_LOGIN_ERRORS, "conflict"),
            ),
            endpoint(
                "POST",
                "/api/v1/auth/login",
                self.image_service_login,
                request=dict.fromkeys(("application/json", *FORM_TYPES), ImageServiceLogin),
                errors=(*_LOGIN_ERRORS, "unauthorized"),
            ),
            endpoint(
                "POST",
                "/api/v1/auth/refresh",
                self.image_service_refresh,
                request={"application/json": ImageServiceRefresh},
                errors=(*_BODY_ERRORS, "unauthorized"),
            ),
            endpoint(
                "GET",
                "/api/v1/auth/me",
                self.image_service_me,
                access="caller",
                serves_outdated_password=True,
                responses={200: json_success("the user", ImageServiceUser)},
            ),
        ]

    async def image_service_register(self, request: Request) -> Response:
        """Register an account and log in, in the way of the image service.

        Registration is closed unless BROKER_REGISTRATION is open.
        """
        body = await read_login(request, ImageServiceRegistration, origins=self.origins)
        client = token_client(request)
        user = await self.users.register(
            body.username, body.password.get_secret_value(), email=body.email, client=client
        )
        return _respond(await self.logins.begin_session("tokens", user, client))

    async def image_service_login(self, request: Request) -> Response:
        """Log in in the way of the image service.

        A form with `username` and `password`, as OAuth 2 has it, is understood, too.
        """
        body = await read_login(request, ImageServiceLogin, origins=self.origins, forms=FORM_TYPES)
        login = await self.logins.log_in_with_tokens(
            body.username, body.password.get_secret_value(), token_client(request)
        )
        return _respond(login)

    async def image_service_refresh(self, request: Request) -> Response:
        """Exchange a refresh token for new tokens.

        It is valid once. Using one again ends the session with all its tokens.
        """
        body = await read_json_model(request, MAX_LOGIN_BYTES, ImageServiceRefresh)
        return _respond(await self.logins.refresh(body.refresh_token))

    async def image_service_me(self, request: Request) -> Response:
        """Get the user of a token in the way of the image service."""
        principal = principal_of(request)
        user = await self.users.get(principal.user_id) if principal.user_id else None
        me = ImageServiceUser(
            id=principal.owner,
            username=principal.name,
            email=user.email if user else None,
            is_active=True,
            is_admin=principal.is_admin,
            created_at=iso(user.created_at) if user else None,
            quota=await read_snake_quotas(self.quotas, principal),
        )
        return json_response(me.to_document())


def _respond(login: Login) -> Response:
    tokens = login.tokens
    if tokens is None:
        raise ValueError("a session with a cookie has no tokens")
    answer = ImageServiceTokens(
        access_token=tokens.access,
        refresh_token=tokens.refresh,
        token_type="bearer",  # noqa: S106
        expires_in=int(tokens.expires_in),
    )
    return json_response(answer.to_document())
