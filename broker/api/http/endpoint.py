"""Declared HTTP endpoints and the routes made of them.

An `Endpoint` is declared once. The router enforces its access; the OpenAPI document, the access test, the fuzzer and
the README's route table read the same declaration. A `Dialect` is a list of endpoints with one authentication rule
and one error shape.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from broker.api.http.auth import require_admin, require_principal
from broker.api.http.query import QueryModel
from broker.errors import ApiError
from broker.logs import request_line
from broker.principal import Principal

Access = Literal["public", "caller", "admin", "provider"]
"""public: open. caller: needs a key or a login. admin: for operators. provider: open; callbacks prove themselves."""
Handler = Callable[[Request], Awaitable[Response]]
Schema = type[BaseModel] | Mapping[str, Any]
"""A pydantic model, or a JSON Schema written out."""

_DIALECT: Final = "broker.dialect"
_ENDPOINT: Final = "broker.endpoint"
_PRINCIPAL: Final = "broker.principal"
TEXT: Final = {"type": "string"}


@dataclass(frozen=True)
class Parameter:
    """A path, query or header parameter as OpenAPI describes it. Those of the path are required, the others not."""

    name: str
    where: Literal["path", "query", "header"]
    text: str
    schema: Mapping[str, Any] = field(default_factory=lambda: TEXT)


IF_NONE_MATCH: Final = Parameter("If-None-Match", "header", "the ETag of an earlier response; 304 if nothing changed")
ETAG: Final = {"ETag": (True, "a hash of this response")}


@dataclass(frozen=True, kw_only=True)
class SuccessResponse:
    """A response other than an error, as OpenAPI describes it."""

    text: str
    content: Mapping[str, Schema] = field(default_factory=dict)
    """By media type; empty: no body."""
    headers: Mapping[str, tuple[bool, str]] = field(default_factory=dict)
    """Name → (always present, description)."""
    links: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    """Name → (operation id, its parameters)."""


NOT_MODIFIED: Final = SuccessResponse(text="nothing changed", headers=ETAG)


@dataclass(frozen=True)
class Endpoint:
    """One method of one path. Its handler's docstring is the summary and description of the OpenAPI document."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    handler: Handler
    _: KW_ONLY
    operation_id: str = ""
    """Unique over all dialects; also the label of the request metric. By default the handler's name in camelCase."""
    access: Access
    tag: str
    parameters: tuple[Parameter, ...] = ()
    """Of the path and the headers; those of the query only where no model parses it."""
    query: type[QueryModel] | None = None
    """Model of the query parameters; a wrong one is answered with `invalid_request`."""
    request: Mapping[str, Schema] = field(default_factory=dict)
    """Body models by media type; empty: no body."""
    responses: Mapping[int, SuccessResponse]
    errors: tuple[str, ...] = ()
    """Codes of `broker.errors.STATUS_OF`, beside those that follow from the access and the query, and server errors."""
    serves_outdated_password: bool = False
    """Also for users who must change their password first."""
    is_held: bool = False
    """The response waits for the end of a task, and may tell its failure."""
    is_quiet: bool = False
    """Log successful requests at DEBUG only: polls, health checks, images."""

    def __post_init__(self) -> None:
        if not self.operation_id:
            object.__setattr__(self, "operation_id", to_camel(getattr(self.handler, "__name__", "")))

    @property
    def summary(self) -> str:
        """Return the first line of the handler's docstring."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0].rstrip(".")

    @property
    def description(self) -> str:
        """Return the other lines of the handler's docstring as one."""
        return " ".join((inspect.getdoc(self.handler) or "").partition("\n")[2].split())

    @cached_property
    def needs_key(self) -> bool:
        return self.access in {"caller", "admin"}

    @property
    def error_codes(self) -> frozenset[str]:
        """Return the codes of all errors but those of the server."""
        by_access = ["unauthorized", "forbidden"] if self.needs_key else []
        return frozenset([*self.errors, *by_access, *(["invalid_request"] if self.query else [])])


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A list of endpoints with one authentication rule and one error shape."""

    name: str
    endpoints: Sequence[Endpoint]
    authenticate: Callable[[HTTPConnection], Awaitable[Principal | None]]
    render_error: Callable[[HTTPConnection, ApiError, Mapping[str, str]], Response]
    """Request, error and extra headers → the response."""
    error_model: type[BaseModel]
    """Model of the bodies that `render_error` makes."""
    is_client: Callable[[HTTPConnection], bool] = lambda _: False
    """Whether a request to a path that several dialects have comes from a client of this one."""
    has_errors_in_success: bool = False
    """Errors about a request come with HTTP 200, and a code in the body tells them from a success."""
    documents: Mapping[str, Callable[..., Mapping[str, Any]]] = field(default_factory=dict)
    """Its part in the responses of paths that several dialects have, by the names of `broker.api.shared`."""


def json_success(text: str, schema: Schema, **more: Any) -> SuccessResponse:
    return SuccessResponse(text=text, content={"application/json": schema}, **more)


def build_routes(dialects: Iterable[Dialect]) -> list[EndpointRoute]:
    """Return one route per path, in declared order. Raises ValueError for an endpoint that is declared twice.

    A path without parameters that one dialect has alone is matched for all methods, so that a pattern after it does not
    get those that it lacks.
    """
    declared = [(dialect, *item) for dialect in dialects for item in _by_path(dialect.endpoints).items()]
    methods: dict[str, set[str]] = {}
    for _, path, endpoints in declared:
        methods.setdefault(path, set()).update(endpoints)
    return [
        EndpointRoute(
            dialect,
            path,
            endpoints,
            allowed=methods[path],
            is_whole="{" not in path and len(methods[path]) == len(endpoints),
        )
        for dialect, path, endpoints in declared
    ]


def _by_path(endpoints: Iterable[Endpoint]) -> dict[str, dict[str, Endpoint]]:
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        methods = paths.setdefault(endpoint.path, {})
        if endpoint.method in methods:
            raise ValueError(f"{endpoint.method} {endpoint.path} is declared twice")
        methods[endpoint.method] = endpoint
    return paths


class EndpointRoute(Route):
    """The methods of one path in one dialect. HEAD is served by GET."""

    def __init__(
        self,
        dialect: Dialect,
        path: str,
        endpoints: Mapping[str, Endpoint],
        *,
        allowed: Iterable[str],
        is_whole: bool,
    ) -> None:
        """allowed: all methods of the path, for a 405; another dialect may have some of them."""
        self._dialect = dialect
        self._endpoints = endpoints
        self._allowed = {*allowed, *(["HEAD"] if "GET" in allowed else [])}
        self._is_whole = is_whole
        super().__init__(path, self.respond, methods=list(endpoints), name=path)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        return Match.FULL if match == Match.PARTIAL and self._is_whole else match, child_scope

    async def respond(self, request: Request) -> Response:
        """Return the response of an endpoint; the access is checked before it can read the body."""
        scope = request.scope
        method = scope["method"]
        endpoint = self._endpoints.get("GET" if method == "HEAD" else method)
        scope[_DIALECT], scope[_ENDPOINT] = self._dialect, endpoint
        if endpoint is None or method not in self._allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(self._allowed))})
        if endpoint.needs_key:
            principal = require_principal(await self._dialect.authenticate(request))
            if endpoint.access == "admin":
                require_admin(principal)
            if principal.must_change_password and not endpoint.serves_outdated_password:
                raise ApiError("forbidden", "Change your password first: POST /api/me/password.")
            scope[_PRINCIPAL] = principal
        elif endpoint.access == "provider":
            scope[_PRINCIPAL] = await self._find_operator(request)
        if endpoint.is_held and (line := request_line.get()) is not None:
            line.is_open = False  # it comes when the images do
        return await endpoint.handler(request)

    async def _find_operator(self, request: Request) -> Principal | None:
        """Return the admin who plays a provider; None for everyone else, whose callback must prove itself."""
        try:
            principal = await self._dialect.authenticate(request)
        except ApiError:
            return None
        if principal is None or not principal.is_admin or principal.must_change_password:
            return None
        return principal


_OTHER_METHOD: Final = ""
_Found = tuple[EndpointRoute, Mapping[str, Any]]
"""A route, and the parameters of the path."""


class EndpointRouter:
    """The route of each path: the first one that matches, as in Starlette, whose own router tries all of them.

    A path without parameters is looked up. The routes that may match another one share its first two segments, or have
    parameters there.
    """

    def __init__(self, routes: Sequence[EndpointRoute]) -> None:
        paths = {route.path for route in routes if "{" not in route.path}
        self._fixed = {path: _by_method(routes, path) for path in paths}
        """By path and method; empty for every other method."""
        patterns = [(_leading_segments(route.path), route) for route in routes if "{" in route.path]
        self._patterns = {
            segments: [route for other, route in patterns if other == segments[: len(other)]]
            for segments in {(), *(segments for segments, _ in patterns)}
        }

    def find_route(self, scope: Scope) -> EndpointRoute:
        """Return the route of a request. Raises HTTPException for a path or a method that none has."""
        path, method = scope["path"], scope["method"]
        if (fixed := self._fixed.get(path)) is not None:
            found = fixed.get(method, fixed[_OTHER_METHOD])
        else:
            found = _first_match(self._candidates(path), path, method)
        if found is None:
            raise HTTPException(404)
        route, scope["path_params"] = found
        return route

    def _candidates(self, path: str) -> Sequence[EndpointRoute]:
        segments = tuple(path.split("/", 3)[1:3])
        for length in (2, 1):
            if (routes := self._patterns.get(segments[:length])) is not None:
                return routes
        return self._patterns[()]


def _by_method(routes: Iterable[EndpointRoute], path: str) -> Mapping[str, _Found | None]:
    """Return the first match of a path without parameters for each method of the routes, and others."""
    candidates = [route for route in routes if route.path_regex.match(path)]
    methods = {_OTHER_METHOD, *(method for route in candidates for method in route.methods or ())}
    return {method: _first_match(candidates, path, method) for method in methods}


def _first_match(routes: Iterable[EndpointRoute], path: str, method: str) -> _Found | None:
    """Return the first route with the path and the method, or the first with the path."""
    partial: _Found | None = None
    for route in routes:
        if route.path_regex.match(path) is None:  # a quarter of what `matches` takes to say so
            continue
        match, found = route.matches({"type": "http", "path": path, "method": method})
        if match is Match.FULL:
            return route, found["path_params"]
        if match is Match.PARTIAL and partial is None:
            partial = route, found["path_params"]
    return partial


def _leading_segments(path: str) -> tuple[str, ...]:
    """Return those of the first two segments of a pattern that are before its first parameter."""
    return tuple(path.partition("{")[0].split("/")[1:-1][:2])


def principal_of(request: HTTPConnection) -> Principal:
    """Return the sender of a request to an endpoint that needs a key."""
    principal: Principal = request.scope[_PRINCIPAL]
    return principal


def is_sent_by_operator(request: HTTPConnection) -> bool:
    """Return whether an admin sent a request to an endpoint of providers."""
    return request.scope[_PRINCIPAL] is not None


def owner_of(scope: Scope) -> str | None:
    """Return the owner of the sender of a request; None if it was not authenticated."""
    principal: Principal | None = scope.get(_PRINCIPAL)
    return principal.owner if principal is not None else None


def dialect_of(scope: Scope) -> Dialect | None:
    """Return the dialect whose path was requested; None for unknown paths."""
    dialect: Dialect | None = scope.get(_DIALECT)
    return dialect


def endpoint_of(scope: Scope) -> Endpoint | None:
    """Return the endpoint that was requested, or None for unknown paths and methods."""
    endpoint: Endpoint | None = scope.get(_ENDPOINT)
    return endpoint
