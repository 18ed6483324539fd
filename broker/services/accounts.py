"""The parts about people: users, logins, and the principals that secrets stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from broker.accounts.api_keys import ApiKeyService
from broker.accounts.credentials import Credentials
from broker.accounts.logins import LoginService, TokenTimes
from broker.accounts.passwords import PasswordHasher
from broker.accounts.provider_keys import ProviderKeyService
from broker.accounts.throttle import LoginThrottle
from broker.accounts.users import UserService
from broker.services.resources import Resources
from broker.tasks.accounts.key_tests import KeyTester
from broker.tasks.accounts.reports import OwnKeys


@dataclass(frozen=True, kw_only=True)
class AccountServices(Resources):
    """The parts about people; each part is made when it is first used."""

    @cached_property
    def credentials(self) -> Credentials:
        return Credentials(
            clock=self.clock,
            users=self.tables.users,
            sessions=self.tables.sessions,
            api_keys=self.tables.api_keys,
            admin_sees_content=self.settings.admin_sees_content,
        )

    @cached_property
    def key_service(self) -> ApiKeyService:
        return ApiKeyService(clock=self.clock, database=self.database, api_keys=self.tables.api_keys)

    @cached_property
    def passwords(self) -> PasswordHasher:
        return PasswordHasher(metrics=self.metrics)

    @cached_property
    def login_throttle(self) -> LoginThrottle:
        return LoginThrottle(
            clock=self.clock,
            counts=self.tables.login_attempts,
            clients=self.tables.login_clients,
            secret=self.tokens.secret,
        )

    @cached_property
    def users(self) -> UserService:
        return UserService(
            clock=self.clock,
            database=self.database,
            users=self.tables.users,
            sessions=self.tables.sessions,
            api_keys=self.tables.api_keys,
            clients=self.tables.login_clients,
            hasher=self.passwords,
            throttle=self.login_throttle,
            registration=self.settings.registration,
        )

    @cached_property
    def logins(self) -> LoginService:
        return LoginService(
            clock=self.clock,
            database=self.database,
            users=self.tables.users,
            sessions=self.tables.sessions,
            hasher=self.passwords,
            throttle=self.login_throttle,
            times=TokenTimes(
                access=self.settings.access_token_minutes * 60.0,
                refresh=self.settings.refresh_token_days * 86_400.0,
            ),
            metrics=self.metrics,
        )

    # -- keys of users at providers

    @cached_property
    def provider_keys(self) -> ProviderKeyService:
        return ProviderKeyService(
            clock=self.clock,
            keys=self.tables.provider_keys,
            vault=self.vault,
            usage=self.tables.rate_limits,
            providers=tuple(self.registry.known),
            test_key=KeyTester(registry=self.registry).test_key,
            forget=self.accounts.forget,
        )

    @cached_property
    def own_keys(self) -> OwnKeys:
        return OwnKeys(
            clock=self.clock,
            service=self.provider_keys,
            accounts=self.accounts,
            limits=self.tables.provider_limits,
        )
