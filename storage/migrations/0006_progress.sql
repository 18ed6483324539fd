-- How far a task is: since when it is in its state, when its order was sent and its job finished, and the provider's own
-- word for it. How long others took is read from those that went well, newest first.
ALTER TABLE tasks ADD COLUMN entered_at DOUBLE PRECISION;
ALTER TABLE tasks ADD COLUMN sent_at DOUBLE PRECISION;
ALTER TABLE tasks ADD COLUMN finished_at DOUBLE PRECISION;
ALTER TABLE tasks ADD COLUMN provider_state TEXT;
ALTER TABLE tasks ADD COLUMN provider_percent DOUBLE PRECISION;
CREATE INDEX tasks_history ON tasks (provider, model, ended_at)
    WHERE state = 'succeeded' AND finished_at IS NOT NULL AND sent_at IS NOT NULL;
