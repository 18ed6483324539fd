"""The parts of conversations."""

from __future__ import annotations

from dataclasses import dataclass

from broker.catalog import Model
from broker.conversations.deletion import ConversationDeleter
from broker.conversations.history import History
from broker.conversations.keeper import TurnKeeper
from broker.conversations.release import TurnRelease
from broker.conversations.service import ConversationService
from broker.ordering.offers import most_references
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
        max_references=resources.most_references,
        max_history=lambda model: _most_history(resources, model),
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
    )
    return ConversationParts(service=service, keeper=TurnKeeper(turns=tables.turns, release=release, deleter=deletion))


def _most_history(resources: Resources, model: Model) -> int:
    """Return how many images a provider with a history takes for a model, at most; 0 without one."""
    keepers = [one for one in resources.providers.values() if one.keeps_history and one.supports(model.name)]
    return most_references(resources.catalog, model, {one.api_name for one in keepers}) if keepers else 0
