"""The history that a turn continues: the turns before it that have an image, and the images that fit into one order.

A provider with a history gets all of it, in its own words where it wrote them itself. Every other provider gets the
last image (`TurnPart.is_past` is set for the others). Images are not copied: rows of references lead to the bytes of
the earlier tasks, which a conversation keeps for as long as itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

from broker.catalog import Catalog
from broker.clock import Clock
from broker.ordering.drafts import reference_columns
from broker.ordering.offers import most_references
from broker.orders import Turn, TurnPart
from broker.tasks.accounts.pools import ProviderAccounts
from storage.conversations.turns import StoredTurn, Turns, TurnTask
from storage.ids import reference_owner, time_digits
from storage.images import Images, StoredImage
from storage.states import TaskState
from storage.tasks import Task

MAX_TURNS_BACK: Final = 50
"""Turns that are looked at; older ones are left out."""
MAX_CHARACTERS: Final = 2**18
"""Of the texts of earlier turns, which are kept with each task; many times what these models read."""

MAX_BYTES: Final = 12 * 2**20
"""Of the images of earlier turns but the last: Google takes 20 MB, as base64 (ai.google.dev: Image understanding)."""


@dataclass(frozen=True, kw_only=True)
class PastTurn:
    """An earlier turn that has an image."""

    answer: TurnTask
    """The task that is continued, of those that answered it."""
    images: tuple[StoredImage, ...]
    """Of the answer."""
    inputs: tuple[StoredImage, ...]
    """Of the user."""

    @property
    def characters(self) -> int:
        return len(self.answer.prompt) + sum(map(len, self.answer.texts))


@dataclass(frozen=True, kw_only=True)
class ContinuedTurn:
    """The history that a turn continues."""

    turns: tuple[Turn, ...]
    """Its own included; empty if there is no earlier one."""
    earlier: tuple[StoredImage, ...]
    """References, to be inserted, which stand before those of the user."""
    has_last_image: bool

    def columns(self, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the columns of its tasks. own: the entries of the references of the user."""
        references = (*(reference_columns(image) for image in self.earlier), *own)
        return {
            "references": references,
            "turns": tuple(turn.to_column() for turn in self.turns),
            "mode": "image-to-image" if references else "text-to-image",
        }


@dataclass(frozen=True, kw_only=True)
class Room:
    """Images that an order may have, at most."""

    images: int
    """At the account that takes most, of those that the owner may use."""
    with_history: int
    """The same of those that keep a history; 0 without one."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Reads what turns continue."""

    clock: Clock
    catalog: Catalog
    turns: Turns
    images: Images
    accounts: ProviderAccounts

    async def may_have_image(self, turn_id: str | None) -> bool:
        """Return whether a turn after this one has an image to go on from, as far as that is known."""
        line = await self.turns.list_line(turn_id, MAX_TURNS_BACK)
        tasks = await self.turns.list_tasks([turn.batch for turn in line])
        listed = [task for batch in tasks.values() for task in batch]
        return any(task.state == TaskState.SUCCEEDED or task.ended_at is None for task in listed)

    async def has_room(self, owner: str, model: str, inputs: int) -> bool:
        """Return whether an order with so many images of the user has room for the last one of the conversation."""
        return inputs < (await self._find_room(owner, model)).images

    async def _find_room(self, owner: str, name: str) -> Room:
        model, usable = self.catalog.resolve(name), await self.accounts.find_usable(owner)
        serving = [provider for provider in usable.values() if provider.supports(model.name)]
        keeping = {provider.api_name for provider in serving if provider.keeps_history}
        return Room(
            images=most_references(self.catalog, model, {provider.api_name for provider in serving}),
            with_history=most_references(self.catalog, model, keeping) if keeping else 0,
        )

    async def read(self, turn: StoredTurn, task: Task) -> ContinuedTurn:
        """Return what a turn continues. task: one of its tasks, which are held."""
        past = await self._list_past(turn)
        kept = _choose_images(past, await self._find_room(task.caller, task.model), turn.inputs)
        earlier = tuple(self._link(image, task.batch, turn.inputs + number) for number, image in enumerate(kept))
        positions = {image.name: number for number, image in enumerate(kept)}
        last = past[0].images[-1].name if past else ""
        turns = [one for each in reversed(past) for one in _spell_past(each, positions, last)]
        own = range(len(earlier), len(earlier) + turn.inputs)
        asked = Turn(
            role="user", parts=(TurnPart(text=task.prompt), *(TurnPart(reference=position) for position in own))
        )
        return ContinuedTurn(turns=(*turns, asked) if turns else (), earlier=earlier, has_last_image=last in positions)

    async def _list_past(self, turn: StoredTurn) -> list[PastTurn]:
        """Return the earlier turns that have an image, the nearest first. Failed ones are passed over."""
        line = await self.turns.list_line(turn.parent_id, MAX_TURNS_BACK)
        tasks = await self.turns.list_tasks([one.batch for one in line])
        answers = [
            _choose_answer(tasks[one.batch], child.parent_task) for child, one in zip([turn, *line], line, strict=False)
        ]
        owners = [answer.id for answer in answers if answer] + [reference_owner(one.batch) for one in line]
        images = await self.images.list_of_owners(owners)
        past: list[PastTurn] = []
        for one, answer in zip(line, answers, strict=True):
            made = images.get(answer.id, []) if answer else []
            if answer is None or not made:
                continue
            shown = {ref["name"] for ref in answer.references[len(answer.references) - one.inputs :]}
            inputs = [image for image in images.get(reference_owner(one.batch), []) if image.name in shown]
            past.append(PastTurn(answer=answer, images=tuple(made), inputs=tuple(inputs)))
        return _cut_to_length(past)

    def _link(self, image: StoredImage, batch: str, position: int) -> StoredImage:
        """Return the row by which the tasks of a batch use an image of an earlier task.

        Its name is the same in all processes that let the turn go, and as hard to guess as the id of the batch.
        """
        digits = hashlib.sha256(f"{batch} {position}".encode()).hexdigest()[:32]
        return replace(
            image,
            name=f"reference_{time_digits(batch)}{digits}.{image.name.rpartition('.')[2]}",
            owner=reference_owner(batch),
            kind="reference",
            position=position,
            created_at=self.clock.now(),
        )


def _choose_answer(tasks: Sequence[TurnTask], wanted: str | None) -> TurnTask | None:
    """Return the task that is continued: the wanted one, or the last one that has an image."""
    made = [task for task in tasks if task.state == TaskState.SUCCEEDED]
    return next((task for task in made if task.id == wanted), made[-1] if made else None)


def _cut_to_length(past: Sequence[PastTurn]) -> list[PastTurn]:
    """Return the nearest turns whose texts together are not too long."""
    kept, characters = list[PastTurn](), 0
    for one in past:
        characters += one.characters
        if characters > MAX_CHARACTERS:
            break
        kept.append(one)
    return kept


def _choose_images(past: Sequence[PastTurn], room: Room, inputs: int) -> list[StoredImage]:
    """Return the images that an order has room for, the oldest first: the last one, then the newest ones."""
    newest = [image for one in past for image in (*reversed(one.images), *reversed(one.inputs))]
    most = max(room.with_history - inputs, 1 if inputs < room.images else 0, 0)
    sizes = accumulate(image.size for image in newest[1:])
    fitting = sum(size <= MAX_BYTES for size in sizes)
    return newest[: min(most, 1 + fitting)][::-1]


def _spell_past(past: PastTurn, positions: Mapping[str, int], last: str) -> tuple[Turn, Turn]:
    """Return the turn of the user and that of the model. positions: of the images that are kept, by name."""
    answer = past.answer
    inputs = (
        TurnPart(reference=positions[image.name], is_past=True) for image in past.inputs if image.name in positions
    )
    made = (
        TurnPart(
            reference=positions[image.name],
            output=answer.outputs[image.position],
            is_past=image.name != last,
        )
        for image in past.images
        if image.name in positions
    )
    texts = (TurnPart(text=text) for text in answer.texts)
    return (
        Turn(role="user", parts=(TurnPart(text=answer.prompt), *inputs)),
        Turn(role="model", parts=(*texts, *made), task=answer.id),
    )
