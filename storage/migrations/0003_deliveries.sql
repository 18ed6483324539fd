-- Webhooks to callers: where each task's end is to be told, what is still to be told, and every try to do so.
ALTER TABLE tasks ADD COLUMN callback_url TEXT;

CREATE TABLE deliveries (
    id TEXT PRIMARY KEY,
    task_id TEXT NOT NULL,
    type TEXT NOT NULL,
    url TEXT NOT NULL,
    host TEXT NOT NULL,
    body TEXT NOT NULL,
    outcome TEXT NOT NULL,
    due_at DOUBLE PRECISION,
    lease_until DOUBLE PRECISION NOT NULL,
    leased_by TEXT NOT NULL,
    rung BIGINT NOT NULL,
    tries BIGINT NOT NULL,
    last_status BIGINT,
    reason TEXT,
    created_at DOUBLE PRECISION NOT NULL,
    delivered_at DOUBLE PRECISION,
    ended_at DOUBLE PRECISION
);

-- the next webhooks to deliver
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE due_at IS NOT NULL;
-- the log, newest first: all of it, of one task, with one outcome
CREATE INDEX deliveries_newest ON deliveries (created_at, id);
CREATE INDEX deliveries_task ON deliveries (task_id, created_at, id);
CREATE INDEX deliveries_outcome ON deliveries (outcome, created_at, id);
CREATE INDEX deliveries_ended ON deliveries (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE delivery_tries (
    delivery_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    status BIGINT,
    error TEXT,
    milliseconds BIGINT NOT NULL,
    PRIMARY KEY (delivery_id, number)
);
