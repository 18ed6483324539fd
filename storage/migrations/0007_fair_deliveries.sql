-- What is due at a receiver is looked at in two turns, first tries and others, and told by its host whether it has a place;
-- and the ends that were to be told, for a look whether they are in the outbox.
DROP INDEX deliveries_host;
CREATE INDEX deliveries_first ON deliveries (due_at, host) WHERE due_at IS NOT NULL AND rung = 0;
CREATE INDEX deliveries_again ON deliveries (due_at, host) WHERE due_at IS NOT NULL AND rung > 0;
