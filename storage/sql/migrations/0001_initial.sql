-- Tasks, their attempts, and the ledger that keeps what attempts cost after their tasks are gone.
CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    batch TEXT NOT NULL,
    caller TEXT NOT NULL,
    state TEXT NOT NULL,
    due_at DOUBLE PRECISION NOT NULL,
    lease_until DOUBLE PRECISION NOT NULL,
    leased_by TEXT NOT NULL,
    version BIGINT NOT NULL,
    provider TEXT NOT NULL,
    key_id TEXT NOT NULL,
    candidates TEXT NOT NULL,
    requested_provider TEXT,
    routes TEXT NOT NULL,
    priority BIGINT NOT NULL,
    model TEXT NOT NULL,
    mode TEXT NOT NULL,
    prompt TEXT NOT NULL,
    aspect_ratio TEXT,
    resolution TEXT,
    params TEXT NOT NULL,
    "references" TEXT NOT NULL,
    turns TEXT NOT NULL,
    origin TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    step_retries BIGINT NOT NULL,
    job_id TEXT,
    expects_callback BIGINT NOT NULL,
    outputs TEXT NOT NULL,
    texts TEXT NOT NULL,
    turn TEXT,
    tokens TEXT NOT NULL,
    deadline_at DOUBLE PRECISION NOT NULL,
    checked_at DOUBLE PRECISION NOT NULL,
    callback_url TEXT,
    error_code TEXT,
    error_detail TEXT,
    error_retryable BIGINT NOT NULL,
    billed TEXT NOT NULL,
    provider_code TEXT,
    cost DOUBLE PRECISION,
    cost_usd DOUBLE PRECISION,
    reserved BIGINT,
    owner_images BIGINT,
    owner_micros BIGINT,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION,
    entered_at DOUBLE PRECISION NOT NULL,
    sent_at DOUBLE PRECISION,
    finished_at DOUBLE PRECISION,
    provider_state TEXT,
    provider_percent DOUBLE PRECISION,
    pinned_at DOUBLE PRECISION
);

-- due steps by state; queued tasks have an order of their own per provider. With the state, or SQLite looks for the next
-- provider in an index of all queued tasks
CREATE INDEX tasks_due ON tasks (state, due_at);
CREATE INDEX tasks_queue ON tasks (state, provider, due_at, id) WHERE state = 'queued';
-- round robin between callers: the head of each one's queue, and when it was served last
CREATE INDEX tasks_turns ON tasks (provider, caller, priority DESC, due_at, id) WHERE state = 'queued';
CREATE INDEX tasks_served ON tasks (provider, caller, sent_at) WHERE sent_at IS NOT NULL;
CREATE INDEX tasks_prepared ON tasks (provider, caller, lease_until) WHERE state = 'queued' AND lease_until > 0;
CREATE INDEX tasks_queue_deadline ON tasks (state, deadline_at) WHERE state = 'queued';
-- the same for accounts of users, few of which have any
CREATE INDEX tasks_own_queue ON tasks (state, provider, due_at, id) WHERE state = 'queued' AND provider LIKE '%@%';
-- jobs that occupy a slot at the provider
CREATE INDEX tasks_running ON tasks (provider, key_id) WHERE state IN ('submitting', 'waiting');
CREATE INDEX tasks_newest ON tasks (created_at, id);
CREATE INDEX tasks_newest_of_caller ON tasks (caller, created_at, id);
CREATE INDEX tasks_batch ON tasks (batch);
-- ended tasks by status; the last one has those that are shown as failed and whose image may still come. With OR: for
-- three values or more after IN, SQLite makes a temporary table in each statement that changes the state
CREATE INDEX tasks_ended ON tasks (state, created_at, id)
    WHERE state = 'succeeded' OR state = 'failed' OR state = 'canceled';
CREATE INDEX tasks_ended_of_caller ON tasks (caller, state, created_at, id)
    WHERE state = 'succeeded' OR state = 'failed' OR state = 'canceled';
CREATE INDEX tasks_late ON tasks (state, created_at, id) WHERE state IN ('waiting', 'fetching') AND ended_at IS NOT NULL;
-- tasks in flight of a caller
CREATE INDEX tasks_in_flight ON tasks (caller) WHERE ended_at IS NULL;
-- what callers keep beyond retention
CREATE INDEX tasks_pinned ON tasks (caller) WHERE pinned_at IS NOT NULL;
-- durations of the newest successes
CREATE INDEX tasks_history ON tasks (provider, model, ended_at)
    WHERE state = 'succeeded' AND finished_at IS NOT NULL AND sent_at IS NOT NULL;

CREATE TABLE attempts (
    task_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    provider TEXT NOT NULL,
    key_id TEXT NOT NULL,
    job_id TEXT,
    sent_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION,
    outcome TEXT NOT NULL,
    code TEXT,
    provider_code TEXT,
    billed TEXT NOT NULL,
    price DOUBLE PRECISION,
    usd_per_unit DOUBLE PRECISION,
    cost DOUBLE PRECISION,
    duplicate_result TEXT,
    duplicate_cost DOUBLE PRECISION,
    learned_by TEXT,
    PRIMARY KEY (task_id, number)
);
CREATE INDEX attempts_job ON attempts (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX attempts_window ON attempts (provider, key_id, sent_at);
-- attempts of a day, for the sums of their costs
CREATE INDEX attempts_sent ON attempts (sent_at);
CREATE INDEX attempts_ended_by_check ON attempts (ended_at) WHERE learned_by = 'check';

-- attempts of purged tasks, summed up: day is in days since the epoch (UTC), cost in the unit of the provider;
-- usd_estimated by the price table at the submission, usd what was certainly billed
CREATE TABLE ledger (
    day BIGINT NOT NULL,
    owner TEXT NOT NULL,
    provider TEXT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    billed TEXT NOT NULL,
    attempts BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    cost DOUBLE PRECISION NOT NULL,
    usd_estimated DOUBLE PRECISION NOT NULL,
    usd DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (day, owner, provider, key_id, model, billed)
);

-- daily budgets: what the tasks created on a day (UTC) may cost or have cost, in millionths of a USD;
-- the sum of their `reserved`, which settles when a task ends
CREATE TABLE budget_days (
    day BIGINT PRIMARY KEY,
    used BIGINT NOT NULL
);

-- each key of a provider: nothing is submitted with it before `paused_until`; its submissions since `window_from`, and
-- in the window before
CREATE TABLE provider_limits (
    provider TEXT NOT NULL,
    key_id TEXT NOT NULL,
    paused_until DOUBLE PRECISION NOT NULL,
    errors BIGINT NOT NULL,
    reason TEXT NOT NULL,
    window_from DOUBLE PRECISION NOT NULL DEFAULT 0,
    submissions BIGINT NOT NULL DEFAULT 0,
    earlier_submissions BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (provider, key_id)
);

-- providers that an operator paused
CREATE TABLE provider_pauses (
    provider TEXT PRIMARY KEY,
    paused_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE images (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    caller TEXT NOT NULL,
    kind TEXT NOT NULL,
    position BIGINT NOT NULL,
    blob TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
);
CREATE UNIQUE INDEX images_owner ON images (owner, kind, position);
-- bytes of a caller's images, for the quotas of owners
CREATE INDEX images_bytes ON images (caller, kind, size);
-- images whose bytes belong to another owner, by that owner; with caller and kind, or SQLite prefers the index above
CREATE INDEX images_links ON images (caller, kind, rtrim(blob, '0123456789abcdef'))
    WHERE caller = '' AND kind = 'reference';

-- batches of different orders: what was said about all of them together
CREATE TABLE batches (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    dialect TEXT NOT NULL,
    name TEXT NOT NULL,
    model TEXT NOT NULL,
    callback_urls TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX batches_newest ON batches (caller, dialect, created_at, id);
CREATE INDEX batches_age ON batches (created_at);

-- images that callers sent ahead of their orders
CREATE TABLE uploaded_files (
    owner TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    blob TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size BIGINT NOT NULL,
    width BIGINT NOT NULL,
    height BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    metadata TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
);
CREATE UNIQUE INDEX uploaded_files_id ON uploaded_files (caller, id);
CREATE INDEX uploaded_files_newest ON uploaded_files (caller, created_at, id);
CREATE INDEX uploaded_files_age ON uploaded_files (created_at);

-- the same while they arrive in several requests
CREATE TABLE resumable_uploads (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    caller TEXT NOT NULL,
    file_id TEXT NOT NULL,
    name TEXT NOT NULL,
    metadata TEXT NOT NULL,
    parts TEXT NOT NULL,
    received BIGINT NOT NULL,
    last_received BIGINT NOT NULL,
    finished_as TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
);
CREATE UNIQUE INDEX resumable_uploads_owner ON resumable_uploads (owner);
CREATE INDEX resumable_uploads_age ON resumable_uploads (created_at);
CREATE INDEX resumable_uploads_caller ON resumable_uploads (caller);

-- callback inbox. Of callbacks without proof only the newest are kept, up to a number of bytes. They form a log: the
-- position of each is the number of bytes before it; null for proven callbacks.
CREATE TABLE callbacks (
    id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    task_id TEXT,
    attempt BIGINT,
    verification TEXT NOT NULL,
    status BIGINT NOT NULL,
    reason TEXT NOT NULL,
    headers TEXT NOT NULL,
    query TEXT NOT NULL,
    body TEXT NOT NULL,
    evidence TEXT NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    processed_at DOUBLE PRECISION,
    job_ended_at DOUBLE PRECISION,
    replay_of TEXT,
    body_truncated BIGINT NOT NULL,
    unproven_position BIGINT
);
CREATE INDEX callbacks_unprocessed ON callbacks (task_id, received_at) WHERE processed_at IS NULL AND task_id IS NOT NULL;
-- pages of the inbox, newest first: all of it, of one task, with one verification, of one provider
CREATE INDEX callbacks_received ON callbacks (received_at, id);
CREATE INDEX callbacks_task ON callbacks (task_id, received_at, id);
CREATE INDEX callbacks_verification ON callbacks (verification, received_at, id);
CREATE INDEX callbacks_provider ON callbacks (provider, received_at, id);
CREATE INDEX callbacks_unproven ON callbacks (unproven_position) WHERE unproven_position IS NOT NULL;

-- bytes ever stored, by kind of callback
CREATE TABLE callback_totals (
    kind TEXT PRIMARY KEY,
    bytes BIGINT NOT NULL
);

CREATE TABLE idempotency (
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    ordinal BIGINT NOT NULL,
    retry_count BIGINT NOT NULL,
    batch TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    answered_at DOUBLE PRECISION,
    sender TEXT NOT NULL,
    left_at DOUBLE PRECISION,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_age ON idempotency (created_at);
-- requests without Idempotency-Key
CREATE INDEX idempotency_derived ON idempotency (caller, fingerprint, ordinal) WHERE ordinal > 0;

-- processes that are sending answers, and when each was last seen alive
CREATE TABLE answer_senders (
    name TEXT PRIMARY KEY,
    seen_at DOUBLE PRECISION NOT NULL,
    beats BIGINT NOT NULL
);

-- images that each caller ordered in its current window
CREATE TABLE rate_limits (
    caller TEXT PRIMARY KEY,
    started_at DOUBLE PRECISION NOT NULL,
    used BIGINT NOT NULL
);

-- outbox of webhooks
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    task_id TEXT NOT NULL,
    type TEXT NOT NULL,
    url TEXT NOT NULL,
    host TEXT NOT NULL,
    body TEXT NOT NULL,
    format TEXT NOT NULL,
    outcome TEXT NOT NULL,
    due_at DOUBLE PRECISION,
    lease_until DOUBLE PRECISION NOT NULL,
    leased_by TEXT NOT NULL,
    schedule_step BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    last_status BIGINT,
    reason TEXT,
    created_at DOUBLE PRECISION NOT NULL,
    delivered_at DOUBLE PRECISION,
    ended_at DOUBLE PRECISION
);

-- due deliveries
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
-- pages of the log, newest first: all of it, of one task, with one outcome
CREATE INDEX deliveries_newest ON deliveries (created_at, id);
CREATE INDEX deliveries_task ON deliveries (task_id, created_at, id);
CREATE INDEX deliveries_outcome ON deliveries (outcome, created_at, id);
CREATE INDEX deliveries_caller ON deliveries (caller, created_at, id);
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE delivery_attempts (
    delivery_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    status BIGINT,
    error TEXT,
    milliseconds BIGINT NOT NULL,
    PRIMARY KEY (delivery_id, number)
);

-- values that all processes of one database share, and jobs that one of them does for all
CREATE TABLE cluster_state (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE periodic_jobs (
    name TEXT PRIMARY KEY,
    due_at DOUBLE PRECISION NOT NULL
);

-- people who log in; name_key: the name normalised
CREATE TABLE users (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    email TEXT,
    password_hash TEXT NOT NULL,
    is_admin BIGINT NOT NULL,
    is_disabled BIGINT NOT NULL,
    must_change_password BIGINT NOT NULL,
    quota TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    last_login_at DOUBLE PRECISION
);
CREATE UNIQUE INDEX users_name ON users (name_key);
CREATE INDEX users_newest ON users (created_at, id);
CREATE INDEX users_by_email ON users (lower(email), created_at, id);

-- one row per login; its secrets are stored as digests
CREATE TABLE sessions (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    client TEXT NOT NULL,
    address TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    last_seen_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX sessions_user ON sessions (user_id);
CREATE INDEX sessions_age ON sessions (expires_at);

CREATE TABLE session_secrets (
    digest TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    used_at DOUBLE PRECISION
);
CREATE INDEX session_secrets_session ON session_secrets (session_id);
CREATE INDEX session_secrets_age ON session_secrets (expires_at);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    prefix TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION,
    last_used_at DOUBLE PRECISION
);
CREATE UNIQUE INDEX api_keys_digest ON api_keys (digest);
CREATE INDEX api_keys_owner ON api_keys (owner, created_at, id);
CREATE INDEX api_keys_newest ON api_keys (created_at, id);
-- one key of a name per user, and among those without a user, which are their own owners
CREATE UNIQUE INDEX api_keys_name ON api_keys (name, (CASE WHEN owner = id THEN '' ELSE owner END));

-- throttle of logins: attempts, by the digest of what they are counted for
CREATE TABLE login_attempts (
    key TEXT PRIMARY KEY,
    failures BIGINT NOT NULL,
    free_at DOUBLE PRECISION NOT NULL,
    forget_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX login_attempts_age ON login_attempts (forget_at);

-- devices and addresses from which users have logged in, as digests
CREATE TABLE login_clients (
    user_id TEXT NOT NULL,
    digest TEXT NOT NULL,
    used_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (user_id, digest)
);
CREATE INDEX login_clients_age ON login_clients (used_at);

-- keys that users have at providers, each sealed by a key derived from SECRET_KEY (`sealing_key` is its id); account: their
-- name in tasks and attempts; retired_at: when a key was replaced or removed that a job still needs
CREATE TABLE provider_keys (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    provider TEXT NOT NULL,
    account TEXT NOT NULL,
    sealed TEXT NOT NULL,
    sealing_key TEXT NOT NULL,
    last_four TEXT NOT NULL,
    is_verified BIGINT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    retired_at DOUBLE PRECISION
);
CREATE UNIQUE INDEX provider_keys_active ON provider_keys (owner, provider) WHERE retired_at IS NULL;
CREATE INDEX provider_keys_owner ON provider_keys (owner);
CREATE INDEX provider_keys_account ON provider_keys (account);
CREATE INDEX provider_keys_retired ON provider_keys (retired_at) WHERE retired_at IS NOT NULL;
CREATE INDEX provider_keys_sealing ON provider_keys (sealing_key);

-- quotas: what the tasks that each private owner created on a day (UTC) count as; the sum of their `owner_images` and
-- `owner_micros` (millionths of a USD), which settle when a task ends
CREATE TABLE owner_usage (
    owner TEXT NOT NULL,
    day BIGINT NOT NULL,
    images BIGINT NOT NULL,
    micros BIGINT NOT NULL,
    PRIMARY KEY (owner, day)
);
CREATE INDEX owner_usage_day ON owner_usage (day);

-- conversations; their contents are in the tasks of their turns. turns: number of the newest turn
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    turns BIGINT NOT NULL,
    pinned_at DOUBLE PRECISION,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    deleted_at DOUBLE PRECISION
);
CREATE INDEX conversations_newest ON conversations (owner, updated_at, id);
CREATE INDEX conversations_age ON conversations (updated_at) WHERE pinned_at IS NULL;
CREATE INDEX conversations_pinned ON conversations (owner) WHERE pinned_at IS NOT NULL;
CREATE INDEX conversations_deleted ON conversations (deleted_at) WHERE deleted_at IS NOT NULL;

-- turns: what a user wrote and showed, and the batch of tasks that answers it. waits: the tasks are held until those of
-- the parent have ended. inputs: images of the user, the last of the references
CREATE TABLE turns (
    id TEXT PRIMARY KEY,
    conversation_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    parent_id TEXT,
    parent_task TEXT,
    batch TEXT NOT NULL,
    inputs BIGINT NOT NULL,
    waits BIGINT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL
);
CREATE UNIQUE INDEX turns_number ON turns (conversation_id, number);
CREATE UNIQUE INDEX turns_batch ON turns (batch);
CREATE INDEX turns_waiting ON turns (created_at) WHERE waits = 1;

-- accounts whose data are deleted; the row goes when no request from before can add anything any more
CREATE TABLE owner_deletions (
    owner TEXT PRIMARY KEY,
    requested_at DOUBLE PRECISION NOT NULL,
    due_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX owner_deletions_due ON owner_deletions (due_at);
