-- What the processes of one database know together: facts they agree on, and chores that one of them does for all.
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE chores (
    name TEXT PRIMARY KEY,
    due_at DOUBLE PRECISION NOT NULL
);
