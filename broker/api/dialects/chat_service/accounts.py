"""Accounts of the chat service: sign up, log in and out with a cookie, and the state of the login."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker.accounts.logins import Login, LoginService
from broker.accounts.users import UserService
from broker.api.http.cookies import clear_session_cookie
from broker.api.http.endpoint import Endpoint, json_success, principal_of
from broker.api.http.request_body import RequestModel
from broker.api.http.responses import json_response
from broker.api.shared.logins import PasswordText, UserNameText, login_client, read_login, set_login_cookies
from broker.api.shared.models import SnakeResponseModel
from broker.api.shared.quotas import SnakeQuotas, read_snake_quotas
from broker.clock import iso
from broker.errors import ApiError
from broker.ordering.quotas import OwnerQuotas
from broker.presenter import Absent, Moment
from broker.principal import Principal

_COOKIE: Final = {"Set-Cookie": (True, "the session, HttpOnly and SameSite=Lax, over TLS also Secure")}
_LOGIN_ERRORS: Final = ("invalid_request", "payload_too_large", "forbidden", "rate_limited")


class ChatServiceLogin(RequestModel):
    """A user name and a password; other fields are ignored."""

    model_config = ConfigDict(strict=True)

    username: UserNameText
    password: PasswordText


class ChatServiceUser(SnakeResponseModel):
    id: str
    username: str


class ChatServiceMe(SnakeResponseModel):
    """The state of the login; the other keys are there if it is one."""

    authenticated: bool
    id: str | Absent = None
    username: Annotated[str | Absent, Field(description="of a user, or the name of a key")] = None
    created_at: Annotated[Moment | Absent, Field(description="of a user")] = None
    must_change_password: Annotated[bool | Absent, Field(description="first: POST /api/me/password")] = None
    quota: SnakeQuotas | Absent = None


class ChatServiceOk(SnakeResponseModel):
    ok: Literal[True]


@dataclass(frozen=True, kw_only=True)
class ChatServiceAccountRoutes:
    users: UserService
    logins: LoginService
    quotas: OwnerQuotas
    authenticate: Callable[[HTTPConnection], Awaitable[Principal | None]]

    def endpoints(self) -> list[Endpoint]:
        """Return the endpoints about accounts."""
        public = partial(Endpoint, access="public", tag="chat service")
        login = partial(public, "POST", request={"application/json": ChatServiceLogin})
        user = json_success("the user, logged in", ChatServiceUser, headers=_COOKIE)
        return [
            login("/auth/signup", self.chat_sign_up, responses={200: user}, errors=(*_LOGIN_ERRORS, "conflict")),
            login("/auth/login", self.chat_log_in, responses={200: user}, errors=(*_LOGIN_ERRORS, "unauthorized")),
            Endpoint(
                "POST",
                "/auth/logout",
                self.chat_log_out,
                access="caller",
                tag="chat service",
                serves_outdated_password=True,
                responses={200: json_success("the session has ended", ChatServiceOk)},
            ),
            public(
                "GET",
                "/me",
                self.chat_me,
                responses={200: json_success("the state of the login", ChatServiceMe)},
            ),
        ]

    async def chat_sign_up(self, request: Request) -> Response:
        """Register an account and log in, in the way of the chat service.

        Registration is closed unless BROKER_REGISTRATION is open.
        """
        body, client = await read_login(request, ChatServiceLogin), login_client(request)
        user = await self.users.register(body.username, body.password.get_secret_value(), client=client)
        return _respond(request, await self.logins.begin_session("cookie", user, client))

    async def chat_log_in(self, request: Request) -> Response:
        """Log in in the way of the chat service.

        The response sets the session cookie; a session that the browser had before ends.
        """
        body = await read_login(request, ChatServiceLogin)
        login = await self.logins.log_in_with_cookie(
            body.username, body.password.get_secret_value(), login_client(request)
        )
        return _respond(request, login)

    async def chat_log_out(self, request: Request) -> Response:
        """Log out in the way of the chat service."""
        session_id = principal_of(request).session_id
        if session_id is not None:
            await self.logins.log_out(session_id)
        response = json_response(ChatServiceOk(ok=True).to_document())
        clear_session_cookie(request, response)
        return response

    async def chat_me(self, request: Request) -> Response:
        """Get the state of the login in the way of the chat service.

        Without a login, and for a disabled account, it is `{"authenticated": false}`.
        """
        try:
            principal = await self.authenticate(request)
            me = await self._present(principal) if principal else ChatServiceMe(authenticated=False)
        except ApiError:  # disabled, or deleted at this moment
            me = ChatServiceMe(authenticated=False)
        return json_response(me.to_document())

    async def _present(self, principal: Principal) -> ChatServiceMe:
        user = await self.users.get(principal.user_id) if principal.user_id else None
        return ChatServiceMe(
            authenticated=True,
            id=principal.owner,
            username=principal.name,
            created_at=iso(user.created_at) if user else None,
            must_change_password=principal.must_change_password,
            quota=await read_snake_quotas(self.quotas, principal),
        )


def _respond(request: Request, login: Login) -> Response:
    response = json_response(ChatServiceUser(id=login.user.id, username=login.user.name).to_document())
    set_login_cookies(request, response, login)
    return response
