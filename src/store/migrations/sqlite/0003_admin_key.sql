-- The broker's own key, sealed, and its replacement by another.
CREATE TABLE admin_key (
    only         INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    user         TEXT    NOT NULL,
    key_id       TEXT    NOT NULL,
    secret       BLOB    NOT NULL,
    since        INTEGER NOT NULL,
    phase        TEXT    NOT NULL,
    -- The key that is not at work: not yet, with its secret, or no longer (one or two ids).
    other_key_id TEXT,
    other_secret BLOB,
    other_since  INTEGER,
    phase_since  INTEGER NOT NULL,
    due_at       INTEGER,
    attempts     INTEGER NOT NULL,
    failure      TEXT,
    revision     INTEGER NOT NULL
) STRICT;
