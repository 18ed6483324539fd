"""The parts of conversations."""

from __future__ import annotations

from dataclasses import dataclass

from broker.conversations.deletion import ConversationDeleter
from broker.conversations.history import History
from broker.conversations.keeper import TurnKeeper
from broker.conversations.release import TurnRelease
from broker.conversations.service import ConversationService
from broker.ordering.service import OrderService
from broker.services.resources import Resources
from broker.tasks.cancellation import TaskCanceler
from broker.tasks.deletion import TaskDeleter


@dataclass(frozen=True, kw_only=True)
class ConversationParts:
    """service: for routes. keeper: runs beside the worker."""

    service: ConversationService
    keeper: TurnKeeper


def make_conversations(
    resources: Resources, *, orders: OrderService, canceler: TaskCanceler, deleter: TaskDeleter
) -> ConversationParts:
    """Return the parts of conversations, made of others."""
    tables, clock = resources.tables, resources.clock
    history = History(
        clock=clock,
        catalog=resources.catalog,
        turns=tables.turns,
        images=tables.images,
        accounts=orders.planner.accounts,
    )
    release = TurnRelease(
        clock=clock,
        tasks=tables.tasks,
        turns=tables.turns,
        images=tables.images,
        history=history,
        planner=orders.planner,
        transitions=deleter.transitions,
    )
    deletion = ConversationDeleter(
        tasks=tables.tasks,
        conversations=tables.conversations,
        turns=tables.turns,
        images=tables.images,
        blobs=resources.blobs,
        canceler=canceler,
        deleter=deleter,
    )
    service = ConversationService(
        clock=clock,
        conversations=tables.conversations,
        turns=tables.turns,
        images=tables.images,
        history=history,
        planner=orders.planner,
        release=release,
        deleter=deletion,
        read_pin_limit=orders.limits.quotas.read_pin_limit,
    )
    return ConversationParts(service=service, keeper=TurnKeeper(turns=tables.turns, release=release, deleter=deletion))
