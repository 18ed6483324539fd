"""The answers kept ready for those who poll."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from broker.api.answers import Prepared
from broker.broker import Broker
from broker.sentences import Language
from broker.showing import Progress
from storage.tasks import Task

MOST_BYTES: Final = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """version: of the row. until: when a place in the queue or an estimate may have changed without it; monotonic."""

    version: int
    until: float
    prepared: Prepared


@dataclass
class Views:
    """Task ids into answers. An answer is kept with the row's version: while it stands, a poll is one point read.

    What is told of a queue or an estimated time stands for a moment only. The tag is a hash of the answer, so that a
    row whose change nobody can see is still "not modified".
    """

    broker: Broker
    most_bytes: int = MOST_BYTES
    _kept: OrderedDict[tuple[str, Language], _Kept] = field(default_factory=OrderedDict)
    _bytes: int = 0

    async def of(self, task_id: str, language: Language) -> Prepared:
        """Raises `Refusal` for ids without a task."""
        version = await self.broker.version(task_id)
        kept = self._kept.get((task_id, language))
        now = self.broker.clock.monotonic()
        if kept is not None and kept.version == version and now < kept.until:
            self._kept.move_to_end((task_id, language))
            return kept.prepared
        task = await self.broker.get(task_id)
        progress = await self.broker.eta.estimate(task)
        document = {"success": True, "data": await self._told(task, language, progress)}
        prepared = Prepared.of(document, ended=task.ended)
        until = self.broker.clock.monotonic() + progress.fresh_for
        self._keep((task_id, language), _Kept(version=task.version, until=until, prepared=prepared))
        return prepared

    async def document(self, task: Task, language: Language) -> dict[str, Any]:
        """What is told of a task, without the answer around it."""
        return await self._told(task, language, await self.broker.eta.estimate(task))

    async def _told(self, task: Task, language: Language, progress: Progress) -> dict[str, Any]:
        return self.broker.showing.document(task, await self.broker.results(task), language, progress)

    def _keep(self, key: tuple[str, Language], kept: _Kept) -> None:
        old = self._kept.pop(key, None)
        self._bytes += len(kept.prepared.body) - (len(old.prepared.body) if old else 0)
        self._kept[key] = kept
        while self._bytes > self.most_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped.prepared.body)
