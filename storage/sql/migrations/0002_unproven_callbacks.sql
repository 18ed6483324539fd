-- Of callbacks without proof only the newest are kept, up to a number of bytes. They form a log: the position of each is
-- the number of bytes before it; null for proven callbacks.
ALTER TABLE callbacks ADD COLUMN body_truncated BIGINT NOT NULL DEFAULT 0;
ALTER TABLE callbacks ADD COLUMN unproven_position BIGINT;
CREATE INDEX callbacks_unproven ON callbacks (unproven_position) WHERE unproven_position IS NOT NULL;

-- bytes ever stored, by kind of callback
CREATE TABLE callback_totals (
    kind TEXT PRIMARY KEY,
    bytes BIGINT NOT NULL
);
