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
    -- It is good for one enrolment of a host, and nothing else.
    enrolls    INTEGER NOT NULL DEFAULT 0,
    CHECK ((service IS NULL) <> (operator IS NULL)),
    CHECK (NOT enrolls OR (service IS NOT NULL AND expires_at IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX tokens_by_service ON tokens (service) WHERE service IS NOT NULL;
CREATE UNIQUE INDEX tokens_by_operator ON tokens (operator) WHERE operator IS NOT NULL;

-- What a service is known by beside its tokens: of one service alone.
CREATE TABLE bindings (
    binding_id TEXT    NOT NULL PRIMARY KEY,
    service    TEXT    NOT NULL REFERENCES services (name) ON DELETE CASCADE,
    kind       TEXT    NOT NULL,
    known_by   TEXT    NOT NULL,
    bound_at   INTEGER NOT NULL,
    -- Of hosts that have enrolled: when their newest certificate ends.
    bound_until INTEGER,
    -- Of rules about signed tokens: whose tokens.
    issuer     TEXT,
    UNIQUE (kind, known_by)
) STRICT, WITHOUT ROWID;
CREATE INDEX bindings_by_service ON bindings (service);
CREATE INDEX bindings_by_issuer ON bindings (issuer) WHERE issuer IS NOT NULL;

-- Changes that take a second operator, in JSON, until they are made, rejected or over.
CREATE TABLE approvals (
    approval_id  TEXT    NOT NULL PRIMARY KEY,
    change       TEXT    NOT NULL,
    requested_by TEXT    NOT NULL,
    requested_at INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    approved_by  TEXT    CHECK (approved_by <> requested_by),
    -- What proves each: names alone do not tell people apart.
    requester_proof TEXT NOT NULL,
    approver_proof  TEXT CHECK (approver_proof <> requester_proof)
) STRICT, WITHOUT ROWID;

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
    ended_at      INTEGER,
    -- A request that may be repeated, and what it asked for.
    request_id     TEXT,
    request_digest BLOB CHECK (length(request_digest) = 32),
    renews         TEXT,
    replacing_until INTEGER,
    key_lost       INTEGER NOT NULL DEFAULT 0,
    made_by        INTEGER,
    left_to_issuer INTEGER NOT NULL DEFAULT 0,
    failing_since  INTEGER,
    -- When its taking away was asked for.
    asked_at       INTEGER,
    -- ARN of the role, or of the user that federates, whose policies AWS asks when the
    -- session acts.
    holder         TEXT
) STRICT, WITHOUT ROWID;
-- A request has one lease.
CREATE UNIQUE INDEX leases_by_request ON leases (service, request_id) WHERE request_id IS NOT NULL;
-- Sessions end by themselves, users with AWS's help: one does not wait for the other.
CREATE INDEX leases_users_due ON leases (due_at) WHERE due_at IS NOT NULL AND kind = 'iam_user';
CREATE INDEX leases_sessions_due ON leases (due_at) WHERE due_at IS NOT NULL AND kind <> 'iam_user';
-- Counted by service and kind at every issue.
CREATE INDEX leases_live ON leases (service, kind = 'iam_user', expires_at) WHERE due_at IS NOT NULL;
-- Revoked sessions that AWS has not been seen to refuse.
CREATE INDEX leases_revoking ON leases (service, lease_id)
    WHERE state IN ('revoking', 'quarantined') AND holder IS NOT NULL;
-- Counted all the time.
CREATE INDEX leases_unsettled ON leases (state) WHERE due_at IS NOT NULL AND state <> 'active';
CREATE INDEX leases_by_service ON leases (service, lease_id);
CREATE INDEX leases_issued ON leases (service, issued_at) WHERE issued_at IS NOT NULL;
-- The session of each grant at each role that expires last is found by one look.
CREATE INDEX leases_last ON leases (service, grant_name, grant_version, holder, expires_at DESC)
    WHERE holder IS NOT NULL AND expires_at IS NOT NULL;
CREATE INDEX leases_by_access_key ON leases (access_key_id) WHERE access_key_id IS NOT NULL;

-- By the index that is meant: without statistics others would be preferred.
CREATE VIEW live_leases AS
    SELECT * FROM leases INDEXED BY leases_live WHERE due_at IS NOT NULL;
CREATE VIEW unsettled_leases AS
    SELECT * FROM leases INDEXED BY leases_unsettled WHERE due_at IS NOT NULL AND state <> 'active';
CREATE VIEW issued_sessions AS
    SELECT * FROM leases INDEXED BY leases_last WHERE holder IS NOT NULL AND expires_at IS NOT NULL;
CREATE VIEW revoking_sessions AS
    SELECT * FROM leases INDEXED BY leases_revoking
    WHERE state IN ('revoking', 'quarantined') AND holder IS NOT NULL;

-- What sessions AWS is to refuse, or refuses. due_at: when something is to be done about
-- it; refused_at: when AWS was seen to refuse.
CREATE TABLE denials (
    holder          TEXT    NOT NULL,
    service         TEXT    NOT NULL,
    scope           TEXT    NOT NULL,
    -- By which a session of the same shape is made.
    grant_name      TEXT    NOT NULL,
    grant_version   INTEGER NOT NULL,
    source_identity INTEGER NOT NULL,
    asked_at        INTEGER NOT NULL,
    issued_before   INTEGER NOT NULL,
    denied_before   INTEGER,
    -- Whether sessions that are issued later are to work, and until when AWS may deny those.
    spares_newer    INTEGER NOT NULL,
    newer_hit_until INTEGER,
    lasts_until     INTEGER NOT NULL,
    due_at          INTEGER NOT NULL,
    refused_at      INTEGER,
    attempts        INTEGER NOT NULL,
    failure         TEXT,
    revision        INTEGER NOT NULL,
    PRIMARY KEY (service, holder, scope)
) STRICT, WITHOUT ROWID;
CREATE INDEX denials_due ON denials (due_at);
-- Looked for at each issue, and nearly never there.
CREATE INDEX denials_everyone ON denials (scope) WHERE scope = 'everyone';

CREATE VIEW service_overviews AS
    SELECT s.*,
           (SELECT count(*) FROM live_leases l WHERE l.service = s.name) AS live_leases,
           (SELECT max(issued_at) FROM leases l WHERE l.service = s.name AND issued_at IS NOT NULL) AS last_issued_at
    FROM services s;

-- The audit log: each record as the bytes that are hashed and exported. The columns beside
-- them serve the search alone and are never read back.
CREATE TABLE audit (
    seq           INTEGER NOT NULL PRIMARY KEY,
    leaf          BLOB    NOT NULL,
    time          INTEGER NOT NULL,
    event         TEXT    NOT NULL,
    outcome       TEXT    NOT NULL,
    actor         TEXT    NOT NULL,
    service       TEXT,
    grant_name    TEXT,
    lease_id      TEXT,
    access_key_id TEXT
) STRICT;
CREATE INDEX audit_by_service ON audit (service, seq) WHERE service IS NOT NULL;
CREATE INDEX audit_by_grant ON audit (grant_name, seq) WHERE grant_name IS NOT NULL;
CREATE INDEX audit_by_lease ON audit (lease_id, seq) WHERE lease_id IS NOT NULL;
CREATE INDEX audit_by_access_key ON audit (access_key_id, seq) WHERE access_key_id IS NOT NULL;
CREATE INDEX audit_by_actor ON audit (actor, seq);
CREATE INDEX audit_by_event ON audit (event, seq);
-- Nearly all that happens succeeds.
CREATE INDEX audit_by_outcome ON audit (outcome, seq) WHERE outcome <> 'success';

-- When the records of each full bundle of 256 were made, the earliest and the latest: a
-- search by time reads a few of them, since times follow the numbers but for moments.
CREATE TABLE audit_spans (
    idx      INTEGER NOT NULL PRIMARY KEY,
    earliest INTEGER NOT NULL,
    latest   INTEGER NOT NULL
) STRICT;

CREATE TRIGGER audit_is_append_only_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_append_only_delete BEFORE DELETE ON audit
WHEN OLD.seq > (SELECT pruned FROM audit_edge)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
-- INSERT OR REPLACE deletes without the trigger above.
CREATE TRIGGER audit_is_append_only_replace BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;

-- The right edge of the log's Merkle tree: the hashes of its perfect subtrees, the largest
-- first, 32 bytes each.
CREATE TABLE audit_edge (
    single INTEGER NOT NULL PRIMARY KEY CHECK (single = 1),
    size     INTEGER NOT NULL,
    subtrees BLOB    NOT NULL CHECK (length(subtrees) % 32 = 0),
    -- How many of the first records have been, or are being, deleted: whole bundles, whose
    -- roots stay.
    pruned   INTEGER NOT NULL DEFAULT 0 CHECK (pruned % 256 = 0)
) STRICT;
INSERT INTO audit_edge (single, size, subtrees) VALUES (1, 0, x'');

-- Roots of full tiles: of 256 leaves at level 1, of 256 such roots at level 2, and so on.
CREATE TABLE audit_tiles (
    level INTEGER NOT NULL,
    idx   INTEGER NOT NULL,
    hash  BLOB    NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

-- Keys that sign the log, each from its number on; the seeds are sealed.
CREATE TABLE audit_keys (
    number   INTEGER NOT NULL PRIMARY KEY,
    verifier TEXT    NOT NULL UNIQUE,
    seed     BLOB    NOT NULL,
    since    INTEGER NOT NULL,
    -- The checkpoint of the key before, over the log that announces this one.
    handover TEXT
) STRICT;

-- The newest checkpoint, a signed note.
CREATE TABLE audit_checkpoint (
    single INTEGER NOT NULL PRIMARY KEY CHECK (single = 1),
    size     INTEGER NOT NULL,
    note     TEXT    NOT NULL,
    -- Whether one has been written beside the store.
    anchored INTEGER NOT NULL
) STRICT;

-- The newest checkpoint that the witness has cosigned, a note with both signatures.
CREATE TABLE audit_witness (
    single INTEGER NOT NULL PRIMARY KEY CHECK (single = 1),
    size INTEGER NOT NULL,
    note TEXT    NOT NULL
) STRICT;

-- The last record that each sink has taken.
CREATE TABLE audit_sinks (
    name TEXT    NOT NULL PRIMARY KEY,
    seq  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What tells this broker's users in AWS from another's.
CREATE TABLE deployment (
    single INTEGER NOT NULL PRIMARY KEY CHECK (single = 1),
    id      TEXT    NOT NULL,
    -- The AWS account that its users and sessions are in, once AWS has told it.
    account TEXT
) STRICT;
INSERT INTO deployment (single, id) VALUES (1, lower(hex(randomblob(5))));

-- The broker's own key, sealed, and its replacement by another.
CREATE TABLE admin_key (
    single INTEGER NOT NULL PRIMARY KEY CHECK (single = 1),
    iam_user     TEXT    NOT NULL,
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
