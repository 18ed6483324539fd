"""What a request and its response carry of a login: the client, and the cookies."""

from __future__ import annotations

from typing import Final, TypeVar

from pydantic import BaseModel
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker.accounts.logins import Login
from broker.accounts.throttle import LoginClient
from broker.api.http.auth import client_address, require_same_site
from broker.api.http.cookies import read_device_cookie, read_session_cookie, set_device_cookie, set_session_cookie
from broker.api.http.request_body import media_type_of, read_json_model
from broker.errors import ApiError

M = TypeVar("M", bound=BaseModel)

MAX_LOGIN_BYTES: Final = 16 * 1024
"""Of the body of a request about an account."""


def login_client(request: HTTPConnection) -> LoginClient:
    """Return where a login comes from."""
    return LoginClient(
        agent=request.headers.get("user-agent", ""),
        address=client_address(request),
        device=read_device_cookie(request),
        cookie=read_session_cookie(request),
    )


async def read_login(request: Request, model: type[M]) -> M:
    """Return the body of a request that logs a browser in. Raises `ApiError`.

    forbidden: another web site sent it. invalid_request: it is not declared as JSON, like a form that another site may
    send without asking, or it does not fit the model.
    """
    require_same_site(request)
    media_type, _ = media_type_of(request)
    if media_type != "application/json":
        raise ApiError("invalid_request", "Send JSON with Content-Type: application/json.", field="Content-Type")
    return await read_json_model(request, MAX_LOGIN_BYTES, model)


def set_login_cookies(request: HTTPConnection, response: Response, login: Login) -> None:
    """Give the browser the cookies of a session that has begun."""
    if login.cookie:
        set_session_cookie(request, response, login.cookie)
    if login.device:
        set_device_cookie(request, response, login.device)
