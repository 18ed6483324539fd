"""Conversation service: lists, pages, titles, pins, and the turn that a new order becomes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.clock import Clock
from broker.conversations.deletion import ConversationDeleter
from broker.conversations.history import History
from broker.conversations.release import TurnRelease
from broker.conversations.titles import check_title, derive_title
from broker.errors import ApiError
from broker.logs import log
from broker.ordering.drafts import PlannedOrder
from broker.ordering.plan import Planner
from broker.orders import StoredReference
from broker.tasks.pins import too_many_pins
from storage.accounts.owner_locks import lock_owner_account
from storage.conversations.conversations import Conversations, StoredConversation
from storage.conversations.turns import NewTurn, StoredTurn, Turns, TurnTask
from storage.errors import Stale, StorageError
from storage.ids import CONVERSATION_ID, TASK_ID, TURN_ID, new_conversation_id, new_turn_id, reference_owner
from storage.images import Images, StoredImage
from storage.sql.database import Statement
from storage.sql.scope import EVERYTHING, Scope
from storage.tasks import Task

MAX_CONVERSATIONS: Final = 1000
"""Of one owner."""
MAX_TURNS: Final = 500
"""Of one conversation."""
TURNS_CHANNEL: Final = "turns"
"""Channel that wakes `TurnKeeper`."""


@dataclass(frozen=True, kw_only=True)
class TurnView:
    """A turn as its conversation shows it."""

    turn: StoredTurn
    tasks: tuple[TurnTask, ...]
    """Empty if their rows are gone."""
    images: tuple[StoredImage, ...]
    """Results of all tasks, in order."""
    inputs: tuple[StoredImage, ...]
    """Images of the user, in order."""


@dataclass(frozen=True, kw_only=True)
class ConversationService:
    """Conversations of the owners in a scope."""

    clock: Clock
    conversations: Conversations
    turns: Turns
    images: Images
    history: History
    planner: Planner
    release: TurnRelease
    deleter: ConversationDeleter
    read_pin_limit: Callable[[str], Awaitable[int | None]]
    """Owner → how many tasks and conversations it may pin; None: any number."""
    max_turns: int = MAX_TURNS
    max_conversations: int = MAX_CONVERSATIONS

    # -- conversations

    async def create(self, owner: str, title: str | None) -> StoredConversation:
        """Return a new conversation. title: None for that of its first prompt. Raises `ApiError`."""
        now = self.clock.now()
        conversation = StoredConversation(
            id=new_conversation_id(now),
            owner=owner,
            title=check_title(title) if title else "",
            turns=0,
            created_at=now,
            updated_at=now,
        )
        if not await self.conversations.insert_if_fewer(conversation, self.max_conversations):
            message = f"You have {self.max_conversations} conversations: delete some."
            raise ApiError("conflict", message)
        return conversation

    async def get(self, scope: Scope, conversation_id: str) -> StoredConversation:
        """Return a conversation. Raises `ApiError("not_found")`."""
        is_id = CONVERSATION_ID.fullmatch(conversation_id)
        found = await self.conversations.get(conversation_id, scope) if is_id else None
        if found is None:
            raise ApiError("not_found", "There is no conversation with this id. Check the id, or begin another one.")
        return found

    async def list_newest(
        self, scope: Scope, *, before: tuple[float, str] | None, limit: int
    ) -> list[StoredConversation]:
        """Return one page, the last used first. before: (updated_at, id) of the last one of the page before."""
        return await self.conversations.list_newest(scope, before=before, limit=limit)

    async def change(
        self, scope: Scope, conversation_id: str, *, title: str | None = None, is_pinned: bool | None = None
    ) -> StoredConversation:
        """Rename, pin or unpin a conversation, and return it then. A pinned one is kept beyond retention.

        Raises `ApiError`.
        """
        conversation = await self.get(scope, conversation_id)
        if title is not None:
            await self.conversations.set_title(conversation.id, check_title(title))
        if is_pinned and conversation.pinned_at is None:
            await self._pin(conversation)
        elif is_pinned is False:
            await self.conversations.unpin(conversation.id)
        return await self.get(scope, conversation_id)

    async def _pin(self, conversation: StoredConversation) -> None:
        """Pin a conversation. It counts as one pin. Raises `ApiError("quota_exceeded")`."""
        limit = await self.read_pin_limit(conversation.owner)
        pinning = self.conversations.pin(conversation, self.clock.now(), limit=limit)
        try:
            await self.conversations.database.transact(lock_owner_account(conversation.owner), pinning)
        except Stale:
            await self.get(EVERYTHING, conversation.id)
            raise too_many_pins(limit) from None

    async def delete(self, scope: Scope, conversation_id: str) -> None:
        """Delete a conversation with its tasks and images; tasks that have not ended are canceled.

        It is gone at once. An image that is being downloaded at the moment is deleted right after.
        """
        conversation = await self.get(scope, conversation_id)
        if not await self.conversations.mark_deleted(conversation.id, self.clock.now()):
            return
        await self._delete_marked([conversation.id])

    async def delete_of_owner(self, owner: str) -> int:
        """Delete all conversations of an owner in the same way; return their number."""
        marked = await self.conversations.mark_deleted_of_owner(owner, self.clock.now())
        if marked:
            await self._delete_marked(marked)
        return len(marked)

    async def _delete_marked(self, conversation_ids: Sequence[str]) -> None:
        log.info("conversations are deleted", action="conversations_deleted", count=len(conversation_ids))
        ended = [await self.deleter.delete_tasks(conversation_id) for conversation_id in conversation_ids]
        if not all(ended):
            self.turns.database.notify(TURNS_CHANNEL)

    # -- turns

    async def list_turns(self, scope: Scope, conversation_id: str, *, before: int | None, limit: int) -> list[TurnView]:
        """Return one page of turns, the newest first. before: number of the last turn of the page before."""
        conversation = await self.get(scope, conversation_id)
        turns = await self.turns.list_newest(conversation.id, before=before, limit=limit)
        tasks = await self.turns.list_tasks([turn.batch for turn in turns])
        owners = [task.id for batch in tasks.values() for task in batch]
        images = await self.images.list_of_owners([*owners, *(reference_owner(turn.batch) for turn in turns)])
        return [
            TurnView(
                turn=turn,
                tasks=tuple(tasks[turn.batch]),
                images=tuple(image for task in tasks[turn.batch] for image in images.get(task.id, ())),
                inputs=_own_images(turn, tasks[turn.batch], images.get(reference_owner(turn.batch), ())),
            )
            for turn in turns
        ]

    async def next_turn(self, scope: Scope, conversation_id: str, parent: str | None = None) -> NextTurn:
        """Return the turn that a new order becomes.

        parent: id of the turn it goes on from, or of one of its tasks, to go on from the image of that; None for the
        newest turn. Raises `ApiError("not_found")`.
        """
        conversation = await self.get(scope, conversation_id)
        found = await self._find_parent(conversation.id, parent) if parent is not None else None
        return NextTurn(
            service=self,
            conversation_id=conversation.id,
            id=new_turn_id(self.clock.now()),
            parent_id=found.id if found else None,
            parent_task=parent if found and parent != found.id else None,
        )

    async def _find_parent(self, conversation_id: str, parent: str) -> StoredTurn:
        found = None
        if TURN_ID.fullmatch(parent):
            found = await self.turns.get(parent)
        elif TASK_ID.fullmatch(parent):
            found = await self.turns.get_of_task(parent)
        if found is None or found.conversation_id != conversation_id:
            raise ApiError("not_found", "There is no such turn in this conversation: check its id.")
        return found


@dataclass(frozen=True, kw_only=True)
class NextTurn:
    """The turn that a new order becomes: a `Continuation`."""

    service: ConversationService
    conversation_id: str
    id: str
    parent_id: str | None
    """None: the newest turn, whichever that is when the order is written."""
    parent_task: str | None

    @property
    def request_key(self) -> str:
        """The part of a request that makes two equal: see `OrderRequest.conversation`."""
        return " ".join(filter(None, (self.conversation_id, self.parent_id, self.parent_task)))

    async def complete(self, caller: str, order: PlannedOrder) -> PlannedOrder:
        """Return the order, planned with the last image of the conversation, if it will have one.

        It reserves what it can cost with that image or without it: the turn before may fail.
        """
        await self.check()
        service, request = self.service, order.request
        parent_id = self.parent_id
        if parent_id is None and (newest := await service.turns.get_newest(self.conversation_id)) is not None:
            parent_id = newest.id
        if not await service.history.may_have_image(parent_id):
            return order
        if not await service.history.has_room(caller, order.plan.order.params.model, len(request.sources)):
            return order
        planned = replace(request, sources=(*request.sources, StoredReference(blob="", sha256="")))
        plan = await service.planner.make_plan(caller, planned)
        most = plan.quote.max_house_usd
        if most is not None:
            quote = replace(plan.quote, max_house_usd=max(most, order.plan.quote.max_house_usd or 0.0))
            plan = replace(plan, quote=quote)
        return order._replace(plan=plan)

    def statements(self, tasks: Sequence[Task]) -> Sequence[Statement]:
        first = tasks[0]
        turn = NewTurn(
            id=self.id,
            conversation_id=self.conversation_id,
            parent_id=self.parent_id,
            parent_task=self.parent_task,
            batch=first.batch,
            inputs=len(first.references),
            created_at=first.created_at,
        )
        service, title = self.service, derive_title(first.prompt)
        return [
            service.conversations.count_turn(
                self.conversation_id, title=title, most=service.max_turns, now=first.created_at
            ),
            service.turns.insert_turn(turn),
        ]

    async def check(self) -> None:
        """Raise `ApiError` if the conversation takes no turn: it is deleted or full."""
        conversation = await self.service.get(EVERYTHING, self.conversation_id)
        if conversation.turns >= self.service.max_turns:
            message = f"This conversation has {conversation.turns} turns, the most it can have: begin another one."
            raise ApiError("conflict", message)

    async def begin(self, tasks: Sequence[Task]) -> None:
        """Let the tasks go, if the turn before has ended; otherwise, or after an error, `TurnKeeper` does it later."""
        try:
            if not await self.service.release.release_if_free(self.id):
                self.service.turns.database.notify(TURNS_CHANNEL)
        except StorageError as error:
            log.warning("a turn is released later", action="turn_not_released", task=tasks[0].id, why=str(error))


def _own_images(
    turn: StoredTurn, tasks: Sequence[TurnTask], references: Sequence[StoredImage]
) -> tuple[StoredImage, ...]:
    """Return the references of a turn that are not of the conversation before it."""
    shown = {ref["name"] for task in tasks for ref in task.references[len(task.references) - turn.inputs :]}
    return tuple(image for image in references if image.name in shown)
