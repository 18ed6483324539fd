"""One's own account: what it is, its password and its sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from broker.accounts.logins import Login, LoginService
from broker.accounts.users import UserService
from broker.api.accounts.schemas import (
    SESSION_ID,
    MeData,
    PasswordChangedData,
    PasswordChangeRequest,
    PasswordRequest,
    SessionData,
    SessionList,
    TokensData,
)
from broker.api.http.cookies import clear_session_cookie
from broker.api.http.endpoint import Endpoint, Parameter, SuccessResponse, json_success, principal_of
from broker.api.http.request_body import read_json_model
from broker.api.http.responses import DataResponse, data_response, json_response
from broker.api.shared.logins import MAX_LOGIN_BYTES, login_client, set_login_cookies
from broker.api.shared.quotas import read_quotas
from broker.errors import ApiError
from broker.ordering.quotas import OwnerQuotas

_SESSION: Final = Parameter(
    "id", "path", "the session's id, which opens nothing", {"type": "string", "pattern": SESSION_ID}
)
_BODY_ERRORS: Final = ("invalid_request", "payload_too_large", "rate_limited", "not_found")


@dataclass(frozen=True, kw_only=True)
class MeRoutes:
    users: UserService
    logins: LoginService
    quotas: OwnerQuotas
    delete_user: Callable[[str], Awaitable[None]]
    """Deletes a user with everything that the user has made."""

    def endpoints(self) -> list[Endpoint]:
        caller = partial(Endpoint, access="caller", tag="accounts")
        password = "/api/me/password"  # noqa: S105
        ended = {204: SuccessResponse(text="ended")}
        return [
            caller(
                "GET",
                "/api/me",
                self.get_me,
                serves_outdated_password=True,
                responses={200: json_success("the sender of this request", DataResponse[MeData])},
            ),
            caller(
                "DELETE",
                "/api/me",
                self.delete_me,
                serves_outdated_password=True,
                request={"application/json": PasswordRequest},
                responses={204: SuccessResponse(text="the account is deleted")},
                errors=_BODY_ERRORS,
            ),
            caller(
                "POST",
                password,
                self.change_own_password,
                serves_outdated_password=True,
                request={"application/json": PasswordChangeRequest},
                responses={200: json_success("the password is changed", DataResponse[PasswordChangedData])},
                errors=(*_BODY_ERRORS, "conflict"),
            ),
            caller(
                "GET",
                "/api/me/sessions",
                self.list_own_sessions,
                responses={200: json_success("the sessions", SessionList)},
            ),
            caller("DELETE", "/api/me/sessions", self.revoke_other_sessions, responses=ended),
            caller(
                "DELETE",
                "/api/me/sessions/{id}",
                self.revoke_session,
                parameters=(_SESSION,),
                responses=ended,
                errors=("not_found",),
            ),
        ]

    async def get_me(self, request: Request) -> Response:
        """Get the sender of this request: a user, a key, or the operator.

        `quota` is what is left of each quota now; it is empty for the operator. `user.quota` has the limits that an
        admin set.
        """
        principal = principal_of(request)
        user = await self.users.get(principal.user_id) if principal.user_id else None
        return data_response(MeData.from_principal(principal, user, await read_quotas(self.quotas, principal)))

    async def delete_me(self, request: Request) -> Response:
        """Delete one's own account with everything in it.

        Needs the password again. This cannot be undone.
        """
        user_id, principal = require_user(request), principal_of(request)
        body = await read_json_model(request, MAX_LOGIN_BYTES, PasswordRequest)
        await self.logins.confirm_password(user_id, principal.session_id, body.password.get_secret_value())
        await self.delete_user(user_id)
        response = Response(status_code=204)
        clear_session_cookie(request, response)
        return response

    async def change_own_password(self, request: Request) -> Response:
        """Change one's own password.

        All sessions end; the one of this request is replaced by a new one, whose cookie or tokens the response has.
        """
        user_id, principal = require_user(request), principal_of(request)
        body = await read_json_model(request, MAX_LOGIN_BYTES, PasswordChangeRequest)
        login = await self.logins.change_password(
            user_id,
            principal.session_id,
            body.password.get_secret_value(),
            body.new_password.get_secret_value(),
            login_client(request),
        )
        response = data_response(_password_changed(login))
        if login is not None:
            set_login_cookies(request, response, login)
        return response

    async def list_own_sessions(self, request: Request) -> Response:
        """List one's own sessions."""
        user_id, current = require_user(request), principal_of(request).session_id
        data = [SessionData.from_session(one, current) for one in await self.logins.list_sessions(user_id)]
        return json_response(SessionList(success=True, data=data).to_document())

    async def revoke_other_sessions(self, request: Request) -> Response:
        """End all of one's own sessions but the one of this request."""
        await self.logins.revoke_all(require_user(request), but=principal_of(request).session_id)
        return Response(status_code=204)

    async def revoke_session(self, request: Request) -> Response:
        """End one of one's own sessions."""
        await self.logins.revoke(require_user(request), request.path_params["id"])
        return Response(status_code=204)


def require_user(request: Request) -> str:
    """Return the id of the user who sent a request. Raises `ApiError("forbidden")` for the operator's keys."""
    user_id = principal_of(request).user_id
    if user_id is None:
        raise ApiError("forbidden", "This is for users: log in, or use an API key that belongs to a user.")
    return user_id


def _password_changed(login: Login | None) -> PasswordChangedData:
    if login is None:
        return PasswordChangedData(session_id=None)
    pair, tokens = login.tokens, None
    if pair is not None:
        tokens = TokensData(access_token=pair.access, refresh_token=pair.refresh, expires_in=pair.expires_in)
    return PasswordChangedData(session_id=login.session.id, tokens=tokens)
