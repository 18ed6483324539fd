"""Python client of a broker: `from broker.client import Client`.

`AsyncClient` has all the code; `Client` runs it on an event loop in a thread. Images include their bytes, so a notebook
displays them. The package imports nothing of the server.
"""

from broker.client.async_client import AsyncClient
from broker.client.errors import (
    BrokerApiError,
    BrokerError,
    ChecksumMismatch,
    TaskCanceled,
    TaskFailed,
    Unreachable,
    WaitTimeout,
)
from broker.client.models import Cost, ErrorDetail, Image, Order, Page, Result, Task
from broker.client.sync_client import Client

__all__ = [
    "AsyncClient",
    "BrokerApiError",
    "BrokerError",
    "ChecksumMismatch",
    "Client",
    "Cost",
    "ErrorDetail",
    "Image",
    "Order",
    "Page",
    "Result",
    "Task",
    "TaskCanceled",
    "TaskFailed",
    "Unreachable",
    "WaitTimeout",
]
