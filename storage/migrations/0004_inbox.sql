-- What the inbox tells of a callback besides itself, and how the end of each attempt was learned.
ALTER TABLE hooks ADD COLUMN proofs TEXT;
ALTER TABLE hooks ADD COLUMN job_ended_at DOUBLE PRECISION;
ALTER TABLE hooks ADD COLUMN replay_of TEXT;

-- pages of the inbox, newest first, by what people look for
CREATE INDEX hooks_task ON hooks (task_id, received_at, id);
CREATE INDEX hooks_verdict ON hooks (verdict, received_at, id);
CREATE INDEX hooks_provider ON hooks (provider, received_at, id);

ALTER TABLE attempts ADD COLUMN learned_by TEXT;
CREATE INDEX attempts_asked ON attempts (ended_at) WHERE learned_by = 'question';
