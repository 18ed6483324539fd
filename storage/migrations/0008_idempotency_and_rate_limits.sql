-- Requests without Idempotency-Key, and the rate limit, over all processes.
ALTER TABLE idempotency ADD COLUMN ordinal BIGINT NOT NULL DEFAULT 0;
ALTER TABLE idempotency ADD COLUMN retry_count BIGINT NOT NULL DEFAULT 0;
ALTER TABLE idempotency ADD COLUMN answered_at DOUBLE PRECISION;
CREATE INDEX idempotency_derived ON idempotency (caller, fingerprint, ordinal) WHERE ordinal > 0;

CREATE TABLE rate_limits (
    caller TEXT PRIMARY KEY,
    started_at DOUBLE PRECISION NOT NULL,
    used BIGINT NOT NULL
);
