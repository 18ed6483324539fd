"""What a request and its response carry of a login: the client, the password, and the cookies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, Field, SecretStr
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from broker.accounts import names, passwords
from broker.accounts.logins import Login
from broker.accounts.throttle import LoginClient
from broker.api.http.auth import client_address, require_same_site
from broker.api.http.cookies import read_device_cookie, read_session_cookie, set_device_cookie, set_session_cookie
from broker.api.http.request_body import media_type_of, read_form_model, read_json_model
from broker.errors import ApiError

M = TypeVar("M", bound=BaseModel)

MAX_LOGIN_BYTES: Final = 16 * 1024
"""Of the body of a request about an account."""

UserNameText = Annotated[str, Field(min_length=1, max_length=names.MAX_RAW_CHARS, examples=["ada"])]
PasswordText = Annotated[SecretStr, Field(min_length=1, max_length=passwords.MAX_BYTES)]


def login_client(request: HTTPConnection) -> LoginClient:
    """Return where a login comes from."""
    return LoginClient(
        agent=request.headers.get("user-agent", ""),
        address=client_address(request),
        device=read_device_cookie(request),
        cookie=read_session_cookie(request),
    )


def token_client(request: HTTPConnection) -> LoginClient:
    """Return where a login for tokens comes from: it does not replace the session of the browser's cookie."""
    return replace(login_client(request), cookie=None)


async def read_login(
    request: Request, model: type[M], *, origins: Collection[str] = (), forms: Collection[str] = ()
) -> M:
    """Return the body of a request that logs in: JSON, or a form of the given types.

    origins: of other web sites whose pages may send it. Raises `ApiError`: forbidden if another one sent it;
    invalid_request if it is not declared as JSON, like a text that another site may send without asking, or does not
    fit the model.
    """
    require_same_site(request, origins)
    media_type, _ = media_type_of(request)
    if media_type in forms:
        return await read_form_model(request, MAX_LOGIN_BYTES, model)
    if media_type != "application/json":
        raise ApiError("invalid_request", "Send JSON with Content-Type: application/json.", field="Content-Type")
    return await read_json_model(request, MAX_LOGIN_BYTES, model)


def set_login_cookies(request: HTTPConnection, response: Response, login: Login) -> None:
    """Give the browser the cookies of a session that has begun."""
    if login.cookie:
        set_session_cookie(request, response, login.cookie)
    if login.device:
        set_device_cookie(request, response, login.device)
