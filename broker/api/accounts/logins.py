"""Registration, login and logout with a session cookie."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.accounts.logins import Login, LoginService
from broker.accounts.users import UserService
from broker.api.accounts.schemas import LoginRequest, RegistrationRequest, UserData
from broker.api.http.cookies import clear_session_cookie
from broker.api.http.endpoint import Endpoint, SuccessResponse, json_success, principal_of
from broker.api.http.responses import DataResponse, data_response
from broker.api.shared.logins import login_client, read_login, set_login_cookies

_COOKIE: Final = {"Set-Cookie": (True, "the session, HttpOnly and SameSite=Lax, over TLS also Secure")}
_BODY_ERRORS: Final = ("invalid_request", "payload_too_large", "forbidden", "rate_limited")


@dataclass(frozen=True, kw_only=True)
class LoginRoutes:
    users: UserService
    logins: LoginService

    def endpoints(self) -> list[Endpoint]:
        post = partial(Endpoint, "POST", tag="accounts")
        user = DataResponse[UserData]
        return [
            post(
                "/api/register",
                self.register_user,
                access="public",
                request={"application/json": RegistrationRequest},
                responses={201: json_success("the user, logged in", user, headers=_COOKIE)},
                errors=(*_BODY_ERRORS, "conflict"),
            ),
            post(
                "/api/login",
                self.log_in,
                access="public",
                request={"application/json": LoginRequest},
                responses={200: json_success("the user, logged in", user, headers=_COOKIE)},
                errors=(*_BODY_ERRORS, "unauthorized"),
            ),
            post(
                "/api/logout",
                self.log_out,
                access="caller",
                serves_outdated_password=True,
                responses={204: SuccessResponse(text="the session has ended")},
            ),
        ]

    async def register_user(self, request: Request) -> Response:
        """Register an account and log in.

        Registration is closed unless BROKER_REGISTRATION is open.
        """
        body, client = await read_login(request, RegistrationRequest), login_client(request)
        user = await self.users.register(
            body.username, body.password.get_secret_value(), email=body.email, client=client
        )
        return _respond(request, await self.logins.begin_session("cookie", user, client), status=201)

    async def log_in(self, request: Request) -> Response:
        """Log in with a user name and a password.

        The response sets the session cookie; one that the browser had before ends. Attempts are slowed down per
        account and address, and answered with 429 and Retry-After then.
        """
        body = await read_login(request, LoginRequest)
        login = await self.logins.log_in_with_cookie(
            body.username, body.password.get_secret_value(), login_client(request)
        )
        return _respond(request, login)

    async def log_out(self, request: Request) -> Response:
        """Log out: end the session of this request."""
        session_id = principal_of(request).session_id
        if session_id is not None:
            await self.logins.log_out(session_id)
        response = Response(status_code=204)
        clear_session_cookie(request, response)
        return response


def _respond(request: Request, login: Login, *, status: int = 200) -> Response:
    response = data_response(UserData.from_user(login.user), status)
    set_login_cookies(request, response, login)
    return response
