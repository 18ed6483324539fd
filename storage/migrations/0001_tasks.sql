-- Tasks, what each attempt cost, the images, the inbox of callbacks, and the answers kept for repeated orders.
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
    model TEXT NOT NULL,
    mode TEXT NOT NULL,
    prompt TEXT NOT NULL,
    aspect_ratio TEXT,
    resolution TEXT,
    output_format TEXT,
    steps BIGINT,
    seed BIGINT,
    refs TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    job_id TEXT,
    hooked BIGINT NOT NULL,
    outputs TEXT NOT NULL,
    deadline_at DOUBLE PRECISION NOT NULL,
    checked_at DOUBLE PRECISION NOT NULL,
    error_code TEXT,
    error_detail TEXT,
    error_retryable BIGINT NOT NULL,
    billed TEXT NOT NULL,
    provider_code TEXT,
    cost DOUBLE PRECISION,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION
);

-- what is due in each state; orders that still wait for a place at their provider have a queue of their own
CREATE INDEX tasks_due ON tasks (state, due_at);
CREATE INDEX tasks_queue ON tasks (provider, due_at, id) WHERE state = 'queued';
CREATE INDEX tasks_queue_deadline ON tasks (deadline_at) WHERE state = 'queued';
-- jobs that occupy a place at the provider
CREATE INDEX tasks_running ON tasks (provider) WHERE state IN ('submitting', 'waiting');
CREATE INDEX tasks_newest ON tasks (created_at, id);
CREATE INDEX tasks_batch ON tasks (batch);

CREATE TABLE attempts (
    task_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    provider TEXT NOT NULL,
    job_id TEXT,
    sent_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION,
    outcome TEXT NOT NULL,
    code TEXT,
    provider_code TEXT,
    billed TEXT NOT NULL,
    cost DOUBLE PRECISION,
    spare TEXT,
    PRIMARY KEY (task_id, number)
);
CREATE INDEX attempts_job ON attempts (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX attempts_window ON attempts (provider, sent_at);

-- how a provider treats us just now: nothing is submitted before `paused_until`
CREATE TABLE lanes (
    provider TEXT PRIMARY KEY,
    paused_until DOUBLE PRECISION NOT NULL,
    troubles BIGINT NOT NULL
);

CREATE TABLE images (
    name TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
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

CREATE TABLE hooks (
    id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    task_id TEXT,
    attempt BIGINT,
    verdict TEXT NOT NULL,
    status BIGINT NOT NULL,
    reason TEXT NOT NULL,
    headers TEXT NOT NULL,
    query TEXT NOT NULL,
    body TEXT NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    digested_at DOUBLE PRECISION
);
CREATE INDEX hooks_unread ON hooks (task_id, received_at) WHERE digested_at IS NULL AND task_id IS NOT NULL;
CREATE INDEX hooks_received ON hooks (received_at, id);

CREATE TABLE idempotency (
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    batch TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_age ON idempotency (created_at);
