-- Times are microseconds since the Unix epoch. Text is compared byte by byte, as SQLite does.

CREATE TABLE services (
    name           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    created_at     BIGINT NOT NULL,
    suspended_at   BIGINT,
    suspend_reason TEXT COLLATE "C"
);

CREATE TABLE operators (
    name       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    role       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL
);

-- A token belongs to a service or to an operator. The digest is SHA-256 of its text.
CREATE TABLE tokens (
    token_id   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    service    TEXT COLLATE "C" REFERENCES services (name) ON DELETE CASCADE,
    operator   TEXT COLLATE "C" REFERENCES operators (name) ON DELETE CASCADE,
    digest     BYTEA NOT NULL CHECK (length(digest) = 32),
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    -- It is good for one enrolment of a host, and nothing else.
    enrolls    BOOLEAN NOT NULL DEFAULT FALSE,
    CHECK ((service IS NULL) <> (operator IS NULL)),
    CHECK (NOT enrolls OR (service IS NOT NULL AND expires_at IS NOT NULL))
);
CREATE INDEX tokens_by_service ON tokens (service) WHERE service IS NOT NULL;
CREATE UNIQUE INDEX tokens_by_operator ON tokens (operator) WHERE operator IS NOT NULL;

-- What a service is known by beside its tokens: of one service alone.
CREATE TABLE bindings (
    binding_id  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    service     TEXT COLLATE "C" NOT NULL REFERENCES services (name) ON DELETE CASCADE,
    kind        TEXT COLLATE "C" NOT NULL,
    known_by    TEXT COLLATE "C" NOT NULL,
    bound_at    BIGINT NOT NULL,
    -- Of hosts that have enrolled: when their newest certificate ends.
    bound_until BIGINT,
    -- Of rules about signed tokens: whose tokens.
    issuer      TEXT COLLATE "C",
    UNIQUE (kind, known_by)
);
CREATE INDEX bindings_by_service ON bindings (service);
CREATE INDEX bindings_by_issuer ON bindings (issuer) WHERE issuer IS NOT NULL;

-- Changes that take a second operator, in JSON, until they are made, rejected or over.
CREATE TABLE approvals (
    approval_id  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    change       TEXT COLLATE "C" NOT NULL,
    requested_by TEXT COLLATE "C" NOT NULL,
    requested_at BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    approved_by  TEXT COLLATE "C" CHECK (approved_by <> requested_by),
    -- What proves each: names alone do not tell people apart.
    requester_proof TEXT COLLATE "C" NOT NULL,
    approver_proof  TEXT COLLATE "C" CHECK (approver_proof <> requester_proof)
);

-- Every version of every grant; a deletion is a version without a spec.
CREATE TABLE grant_versions (
    service    TEXT COLLATE "C" NOT NULL,
    grant_name TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    spec       TEXT COLLATE "C",
    created_at BIGINT NOT NULL,
    created_by TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (service, grant_name, version)
);

CREATE VIEW grants AS
    SELECT v.* FROM grant_versions v
    WHERE v.spec IS NOT NULL
      AND v.version = (SELECT max(n.version) FROM grant_versions n
                       WHERE n.service = v.service AND n.grant_name = v.grant_name);

-- due_at: when the broker has something to do about the lease; NULL once it has ended.
CREATE TABLE leases (
    lease_id        TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    service         TEXT COLLATE "C" NOT NULL,
    grant_name      TEXT COLLATE "C" NOT NULL,
    grant_version   BIGINT NOT NULL,
    kind            TEXT COLLATE "C" NOT NULL,
    aws_name        TEXT COLLATE "C" NOT NULL,
    requested_at    BIGINT NOT NULL,
    state           TEXT COLLATE "C" NOT NULL,
    revision        BIGINT NOT NULL,
    due_at          BIGINT,
    access_key_id   TEXT COLLATE "C",
    issued_at       BIGINT,
    expires_at      BIGINT,
    cause           TEXT COLLATE "C",
    attempts        BIGINT NOT NULL,
    ended_at        BIGINT,
    -- A request that may be repeated, and what it asked for.
    request_id      TEXT COLLATE "C",
    request_digest  BYTEA CHECK (length(request_digest) = 32),
    renews          TEXT COLLATE "C",
    replacing_until BIGINT,
    key_lost        BOOLEAN NOT NULL DEFAULT FALSE,
    made_by         BIGINT,
    left_to_issuer  BOOLEAN NOT NULL DEFAULT FALSE,
    failing_since   BIGINT,
    -- When its taking away was asked for.
    asked_at        BIGINT,
    -- ARN of the role, or of the user that federates, whose policies AWS asks when the
    -- session acts.
    holder          TEXT COLLATE "C"
);
-- A request has one lease.
CREATE UNIQUE INDEX leases_by_request ON leases (service, request_id) WHERE request_id IS NOT NULL;
-- Sessions end by themselves, users with AWS's help: one does not wait for the other.
CREATE INDEX leases_users_due ON leases (due_at) WHERE due_at IS NOT NULL AND kind = 'iam_user';
CREATE INDEX leases_sessions_due ON leases (due_at) WHERE due_at IS NOT NULL AND kind <> 'iam_user';
-- Counted by service and kind at every issue.
CREATE INDEX leases_live ON leases (service, (kind = 'iam_user'), expires_at) WHERE due_at IS NOT NULL;
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

CREATE VIEW live_leases AS
    SELECT * FROM leases WHERE due_at IS NOT NULL;
CREATE VIEW unsettled_leases AS
    SELECT * FROM leases WHERE due_at IS NOT NULL AND state <> 'active';
CREATE VIEW issued_sessions AS
    SELECT * FROM leases WHERE holder IS NOT NULL AND expires_at IS NOT NULL;
CREATE VIEW revoking_sessions AS
    SELECT * FROM leases
    WHERE state IN ('revoking', 'quarantined') AND holder IS NOT NULL;

-- What sessions AWS is to refuse, or refuses. due_at: when something is to be done about
-- it; refused_at: when AWS was seen to refuse.
CREATE TABLE denials (
    holder          TEXT COLLATE "C" NOT NULL,
    service         TEXT COLLATE "C" NOT NULL,
    scope           TEXT COLLATE "C" NOT NULL,
    -- By which a session of the same shape is made.
    grant_name      TEXT COLLATE "C" NOT NULL,
    grant_version   BIGINT NOT NULL,
    source_identity BOOLEAN NOT NULL,
    asked_at        BIGINT NOT NULL,
    issued_before   BIGINT NOT NULL,
    denied_before   BIGINT,
    -- Whether sessions that are issued later are to work, and until when AWS may deny those.
    spares_newer    BOOLEAN NOT NULL,
    newer_hit_until BIGINT,
    lasts_until     BIGINT NOT NULL,
    due_at          BIGINT NOT NULL,
    refused_at      BIGINT,
    attempts        BIGINT NOT NULL,
    failure         TEXT COLLATE "C",
    revision        BIGINT NOT NULL,
    PRIMARY KEY (service, holder, scope)
);
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
    seq           BIGINT NOT NULL PRIMARY KEY,
    leaf          BYTEA NOT NULL,
    time          BIGINT NOT NULL,
    event         TEXT COLLATE "C" NOT NULL,
    outcome       TEXT COLLATE "C" NOT NULL,
    actor         TEXT COLLATE "C" NOT NULL,
    service       TEXT COLLATE "C",
    grant_name    TEXT COLLATE "C",
    lease_id      TEXT COLLATE "C",
    access_key_id TEXT COLLATE "C"
);
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
    idx      BIGINT NOT NULL PRIMARY KEY,
    earliest BIGINT NOT NULL,
    latest   BIGINT NOT NULL
);

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.seq <= (SELECT pruned FROM audit_edge) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only';
END $$;
CREATE TRIGGER audit_is_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_is_append_only();
CREATE TRIGGER audit_is_not_truncated BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only();

-- The right edge of the log's Merkle tree: the hashes of its perfect subtrees, the largest
-- first, 32 bytes each.
CREATE TABLE audit_edge (
    single   BIGINT NOT NULL PRIMARY KEY CHECK (single = 1),
    size     BIGINT NOT NULL,
    subtrees BYTEA NOT NULL CHECK (length(subtrees) % 32 = 0),
    -- How many of the first records have been, or are being, deleted: whole bundles, whose
    -- roots stay.
    pruned   BIGINT NOT NULL DEFAULT 0 CHECK (pruned % 256 = 0)
);
INSERT INTO audit_edge (single, size, subtrees) VALUES (1, 0, '');

-- Roots of full tiles: of 256 leaves at level 1, of 256 such roots at level 2, and so on.
CREATE TABLE audit_tiles (
    level BIGINT NOT NULL,
    idx   BIGINT NOT NULL,
    hash  BYTEA NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
);

-- Keys that sign the log, each from its number on; the seeds are sealed.
CREATE TABLE audit_keys (
    number   BIGINT NOT NULL PRIMARY KEY,
    verifier TEXT COLLATE "C" NOT NULL UNIQUE,
    seed     BYTEA NOT NULL,
    since    BIGINT NOT NULL,
    -- The checkpoint of the key before, over the log that announces this one.
    handover TEXT COLLATE "C"
);

-- The newest checkpoint, a signed note.
CREATE TABLE audit_checkpoint (
    single   BIGINT NOT NULL PRIMARY KEY CHECK (single = 1),
    size     BIGINT NOT NULL,
    note     TEXT COLLATE "C" NOT NULL,
    -- Whether one has been written beside the store.
    anchored BOOLEAN NOT NULL
);

-- The newest checkpoint that the witness has cosigned, a note with both signatures.
CREATE TABLE audit_witness (
    single BIGINT NOT NULL PRIMARY KEY CHECK (single = 1),
    size   BIGINT NOT NULL,
    note   TEXT COLLATE "C" NOT NULL
);

-- The last record that each sink has taken.
CREATE TABLE audit_sinks (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seq  BIGINT NOT NULL
);

-- What tells this broker's users in AWS from another's.
CREATE TABLE deployment (
    single  BIGINT NOT NULL PRIMARY KEY CHECK (single = 1),
    id      TEXT COLLATE "C" NOT NULL,
    -- The AWS account that its users and sessions are in, once AWS has told it.
    account TEXT COLLATE "C"
);
INSERT INTO deployment (single, id) VALUES (1, substr(replace(gen_random_uuid()::TEXT, '-', ''), 1, 10));

-- The broker's own key, sealed, and its replacement by another.
CREATE TABLE admin_key (
    single       BIGINT NOT NULL PRIMARY KEY CHECK (single = 1),
    iam_user     TEXT COLLATE "C" NOT NULL,
    key_id       TEXT COLLATE "C" NOT NULL,
    secret       BYTEA NOT NULL,
    since        BIGINT NOT NULL,
    phase        TEXT COLLATE "C" NOT NULL,
    -- The key that is not at work: not yet, with its secret, or no longer (one or two ids).
    other_key_id TEXT COLLATE "C",
    other_secret BYTEA,
    other_since  BIGINT,
    phase_since  BIGINT NOT NULL,
    due_at       BIGINT,
    attempts     BIGINT NOT NULL,
    failure      TEXT COLLATE "C",
    revision     BIGINT NOT NULL
);

-- Brokers at work, by the instances in their records.
CREATE TABLE brokers (
    id             TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    -- The id of its emergency file: another that has the same has followed it.
    emergency_file TEXT COLLATE "C" NOT NULL,
    -- When it has last said so, by the database's clock.
    seen           TIMESTAMPTZ NOT NULL
);

-- What one of them has to itself.
CREATE TABLE claims (
    what  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    -- Of all who have had it, the how manieth this is.
    epoch BIGINT NOT NULL,
    until TIMESTAMPTZ NOT NULL
);
