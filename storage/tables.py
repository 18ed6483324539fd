"""The tables of one database, for parts that use several of them."""

from __future__ import annotations

from storage.accounts.api_keys import ApiKeys
from storage.accounts.login_attempts import LoginAttemptCounts, LoginClients
from storage.accounts.owner_deletions import OwnerDeletions
from storage.accounts.owners import Owners
from storage.accounts.provider_keys import ProviderKeys
from storage.accounts.sessions import Sessions
from storage.accounts.users import Users
from storage.attempts import Attempts
from storage.batches import Batches
from storage.callbacks import Callbacks
from storage.cluster_state import ClusterState, PeriodicJobs
from storage.conversations.conversations import Conversations
from storage.conversations.turns import Turns
from storage.deliveries import Deliveries
from storage.files.resumable_uploads import ResumableUploads
from storage.files.uploaded_files import UploadedFiles
from storage.idempotency import AnswerSenders, IdempotencyRecords
from storage.images import Images
from storage.ledger import Ledger
from storage.limits.budgets import Budgets
from storage.limits.owner_usage import OwnerUsage
from storage.limits.provider_limits import ProviderLimits
from storage.limits.rate_limits import RateLimits
from storage.lists.newest_tasks import NewestTasks
from storage.sql.database import Database
from storage.task_queue import TaskQueue
from storage.task_retention import TaskRetention
from storage.tasks import Tasks


class Tables:
    """One value per table. They hold no state, so any number may exist for a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.tasks = Tasks(database)
        self.newest_tasks = NewestTasks(database)
        self.task_queue = TaskQueue(database)
        self.task_retention = TaskRetention(database)
        self.batches = Batches(database)
        self.conversations = Conversations(database)
        self.turns = Turns(database)
        self.attempts = Attempts(database)
        self.ledger = Ledger(database)
        self.images = Images(database)
        self.uploaded_files = UploadedFiles(database)
        self.resumable_uploads = ResumableUploads(database)
        self.callbacks = Callbacks(database)
        self.deliveries = Deliveries(database)
        self.idempotency = IdempotencyRecords(database)
        self.answer_senders = AnswerSenders(database)
        self.provider_limits = ProviderLimits(database)
        self.budgets = Budgets(database)
        self.owner_usage = OwnerUsage(database)
        self.rate_limits = RateLimits(database)
        self.periodic_jobs = PeriodicJobs(database)
        self.users = Users(database)
        self.sessions = Sessions(database)
        self.login_attempts = LoginAttemptCounts(database)
        self.login_clients = LoginClients(database)
        self.api_keys = ApiKeys(database)
        self.owners = Owners(database)
        self.owner_deletions = OwnerDeletions(database)
        self.provider_keys = ProviderKeys(database)
        self.cluster_state = ClusterState(database)
