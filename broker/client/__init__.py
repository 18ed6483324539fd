"""For programs that use a broker: `from broker.client import Client`.

Everything is written once, for those who await; `Client` runs that in a thread rather than being its twin. Images come
with their bytes, so that they mean the same in both worlds and show themselves in a notebook. Nothing of the server is
loaded. To be looked at again when the server's answers are typed by its API description: these could then be, too.
"""

from broker.client.asynchronous import AsyncClient
from broker.client.blocking import Client
from broker.client.errors import BrokerError, Damaged, Refused, TaskCanceled, TaskFailed, TimedOut, Unreachable
from broker.client.results import Cost, ErrorDetail, Image, Order, Page, Result, Task

__all__ = [
    "AsyncClient",
    "BrokerError",
    "Client",
    "Cost",
    "Damaged",
    "ErrorDetail",
    "Image",
    "Order",
    "Page",
    "Refused",
    "Result",
    "Task",
    "TaskCanceled",
    "TaskFailed",
    "TimedOut",
    "Unreachable",
]
