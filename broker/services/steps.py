"""The steps of tasks."""

from __future__ import annotations

from broker.services.resources import Resources
from broker.tasks.orders import OrderBuilder
from broker.tasks.result_sink import SinkFactory
from broker.tasks.steps.check import CheckStep
from broker.tasks.steps.download import DownloadStep
from broker.tasks.steps.submit import SubmitStep
from broker.tasks.steps.table import StepTable
from broker.tasks.transitions import Transitions


def make_steps(resources: Resources, transitions: Transitions) -> StepTable:
    """Return the step of each state."""
    tables, accounts = resources.tables, resources.accounts
    sinks = SinkFactory(blobs=resources.blobs, max_bytes=resources.settings.max_download_bytes)
    orders = OrderBuilder(turns=tables.turns, blobs=resources.blobs, image_base=lambda: resources.address.base)
    return StepTable(
        submit=SubmitStep(
            limits=tables.provider_limits,
            accounts=accounts,
            queue=resources.submissions,
            orders=orders,
            sinks=sinks,
            transitions=transitions,
            usd_per_unit=lambda provider: resources.registry.terms(provider).usd_per_unit,
            callback_url=resources.callback_url,
        ),
        check=CheckStep(callbacks=tables.callbacks, accounts=accounts, sinks=sinks, transitions=transitions),
        download=DownloadStep(
            images=tables.images,
            intake=resources.intake,
            fetcher=resources.fetcher,
            blobs=resources.blobs,
            accounts=accounts,
            sinks=sinks,
            transitions=transitions,
            max_download_bytes=resources.settings.max_download_bytes,
        ),
        transitions=transitions,
    )
