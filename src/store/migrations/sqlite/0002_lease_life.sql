-- Requests that may be repeated, renewals, and how a lease is taken away.
ALTER TABLE leases ADD COLUMN request_id TEXT;
ALTER TABLE leases ADD COLUMN request_digest BLOB CHECK (length(request_digest) = 32);
ALTER TABLE leases ADD COLUMN renews TEXT;
ALTER TABLE leases ADD COLUMN replacing_until INTEGER;
ALTER TABLE leases ADD COLUMN key_lost INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN made_by INTEGER;
ALTER TABLE leases ADD COLUMN left_to_issuer INTEGER NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN failing_since INTEGER;

UPDATE leases SET made_by = coalesce(issued_at, requested_at + 60000000) WHERE state = 'revoking';

-- A request has one lease.
CREATE UNIQUE INDEX leases_by_request ON leases (service, request_id) WHERE request_id IS NOT NULL;

-- Sessions end by themselves, users with AWS's help: one does not wait for the other.
DROP INDEX leases_due;
CREATE INDEX leases_due ON leases (kind = 'iam_user', due_at) WHERE due_at IS NOT NULL;

-- Counted by service and kind at every issue.
DROP INDEX leases_live;
CREATE INDEX leases_live ON leases (service, kind = 'iam_user', expires_at) WHERE due_at IS NOT NULL;

-- What tells this broker's users in AWS from another's.
CREATE TABLE deployment (
    only    INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    id      TEXT    NOT NULL,
    -- The AWS account that its users and sessions are in, once AWS has told it.
    account TEXT
) STRICT;
INSERT INTO deployment (only, id) VALUES (1, lower(hex(randomblob(5))));
