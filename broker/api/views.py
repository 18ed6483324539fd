"""The answers kept ready for those who poll."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from broker.api.answers import Prepared
from broker.broker import Broker
from broker.sentences import Language
from storage.tasks import Task

MOST_BYTES: Final = 16 * 2**20


@dataclass
class Views:
    """Task ids into answers. An answer is kept with the row's version: while it stands, a poll is one point read.

    The tag is a hash of the answer, so that a row whose change nobody can see is still "not modified".
    """

    broker: Broker
    most_bytes: int = MOST_BYTES
    _kept: OrderedDict[tuple[str, Language], tuple[int, Prepared]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    async def of(self, task_id: str, language: Language) -> Prepared:
        """Raises `Refusal` for ids without a task."""
        version = await self.broker.version(task_id)
        kept = self._kept.get((task_id, language))
        if kept is not None and kept[0] == version:
            self._kept.move_to_end((task_id, language))
            return kept[1]
        task = await self.broker.get(task_id)
        prepared = Prepared.of({"success": True, "data": await self.document(task, language)}, ended=task.ended)
        self._keep((task_id, language), task.version, prepared)
        return prepared

    async def document(self, task: Task, language: Language) -> dict[str, Any]:
        """What is told of a task, without the answer around it."""
        return self.broker.showing.document(task, await self.broker.results(task), language)

    def _keep(self, key: tuple[str, Language], version: int, prepared: Prepared) -> None:
        old = self._kept.pop(key, None)
        self._bytes += len(prepared.body) - (len(old[1].body) if old else 0)
        self._kept[key] = (version, prepared)
        while self._bytes > self.most_bytes and self._kept:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._bytes -= len(dropped.body)
