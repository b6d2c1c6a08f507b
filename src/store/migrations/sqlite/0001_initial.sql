-- Times are microseconds since the Unix epoch.

CREATE TABLE services (
    name           TEXT    NOT NULL PRIMARY KEY,
    created_at     INTEGER NOT NULL,
    suspended_at   INTEGER,
    suspend_reason TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE operators (
    name       TEXT    NOT NULL PRIMARY KEY,
    role       TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A token belongs to a service or to an operator. The digest is SHA-256 of its text.
CREATE TABLE tokens (
    token_id   TEXT    NOT NULL PRIMARY KEY,
    service    TEXT    REFERENCES services (name) ON DELETE CASCADE,
    operator   TEXT    REFERENCES operators (name) ON DELETE CASCADE,
    digest     BLOB    NOT NULL CHECK (length(digest) = 32),
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    CHECK ((service IS NULL) <> (operator IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_service ON tokens (service) WHERE service IS NOT NULL;
CREATE UNIQUE INDEX tokens_by_operator ON tokens (operator) WHERE operator IS NOT NULL;

-- Every version of every grant; a deletion is a version without a spec.
CREATE TABLE grant_versions (
    service    TEXT    NOT NULL,
    grant_name TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    spec       TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT    NOT NULL,
    PRIMARY KEY (service, grant_name, version)
) STRICT, WITHOUT ROWID;

CREATE VIEW grants AS
    SELECT v.* FROM grant_versions v
    WHERE v.spec IS NOT NULL
      AND v.version = (SELECT max(n.version) FROM grant_versions n
                       WHERE n.service = v.service AND n.grant_name = v.grant_name);

-- due_at: when the broker has something to do about the lease; NULL once it has ended.
CREATE TABLE leases (
    lease_id      TEXT    NOT NULL PRIMARY KEY,
    service       TEXT    NOT NULL,
    grant_name    TEXT    NOT NULL,
    grant_version INTEGER NOT NULL,
    kind          TEXT    NOT NULL,
    aws_name      TEXT    NOT NULL,
    requested_at  INTEGER NOT NULL,
    state         TEXT    NOT NULL,
    revision      INTEGER NOT NULL,
    due_at        INTEGER,
    access_key_id TEXT,
    issued_at     INTEGER,
    expires_at    INTEGER,
    cause         TEXT,
    attempts      INTEGER NOT NULL,
    ended_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_due ON leases (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX leases_live ON leases (service) WHERE due_at IS NOT NULL;
CREATE INDEX leases_by_service ON leases (service, lease_id);
CREATE INDEX leases_issued ON leases (service, issued_at);

CREATE VIEW service_overviews AS
    SELECT s.*,
           (SELECT count(*) FROM leases l WHERE l.service = s.name AND l.due_at IS NOT NULL) AS live_leases,
           (SELECT max(issued_at) FROM leases l WHERE l.service = s.name) AS last_issued_at
    FROM services s;

CREATE TABLE audit (
    seq            INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    time           INTEGER NOT NULL,
    event          TEXT    NOT NULL,
    outcome        TEXT    NOT NULL,
    actor          TEXT    NOT NULL,
    token_id       TEXT,
    peer           TEXT,
    method         TEXT,
    service        TEXT,
    grant_name     TEXT,
    grant_version  INTEGER,
    lease_id       TEXT,
    access_key_id  TEXT,
    aws_request_id TEXT,
    reason         TEXT,
    detail         TEXT
) STRICT;
CREATE INDEX audit_by_service ON audit (service, seq) WHERE service IS NOT NULL;
CREATE INDEX audit_by_lease ON audit (lease_id, seq) WHERE lease_id IS NOT NULL;
CREATE INDEX audit_by_access_key ON audit (access_key_id, seq) WHERE access_key_id IS NOT NULL;

CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
-- INSERT OR REPLACE deletes without the trigger above.
CREATE TRIGGER audit_is_append_only_replace BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
