-- Equal results are stored once: where bytes are already, and whose tasks need those of another one (its `holder`).
ALTER TABLE images ADD COLUMN holder TEXT;
CREATE INDEX images_equal ON images (sha256, size) WHERE kind = 'result' AND holder IS NULL;
CREATE INDEX images_holder ON images (holder) WHERE holder IS NOT NULL;
