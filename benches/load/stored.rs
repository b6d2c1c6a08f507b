//! A store like after years: leases by the million, copied from one that was issued.

use crate::harness::site::Site;

/// Leases that have ended, and leases that live.
pub const PAST: i64 = 1_000_000;
pub const LIVE: i64 = 250_000;
/// Number of services besides the one that calls. All have equally many leases.
const SERVICES: i64 = 199;

/// Columns of a lease, except its ID.
pub const COLUMNS: &str = "service, grant_name, grant_version, kind, aws_name, requested_at, state,
                       revision, due_at, access_key_id, issued_at, expires_at, cause, attempts,
                       ended_at, request_id, request_digest, renews, replacing_until, key_lost, made_by, left_to_issuer, failing_since, asked_at, holder";

/// Copies the one lease of the store: `PAST` copies have ended, and `LIVE` copies live for another
/// twelve hours.
pub async fn fill(site: &Site) {
    let service = |column: &str| {
        format!(
            "CASE n % {0} WHEN 0 THEN 'bench' ELSE 's' || (n % {0}) END AS {column}",
            SERVICES + 1
        )
    };
    let copy = |first: i64, count: i64, state: &str, due: &str, ended: &str| {
        format!(
            "WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})
             INSERT INTO leases (lease_id, {COLUMNS})
             SELECT printf('%026d', n), {service}, grant_name, grant_version, kind, aws_name,
                    requested_at - 86400000000, {state}, revision, {due}, printf('ASIA%016d', n),
                    issued_at - 86400000000, {expires}, cause, attempts, {ended}, request_id,
                    request_digest, renews, replacing_until, key_lost, made_by, left_to_issuer,
                    failing_since, asked_at, holder
             FROM numbers, (SELECT * FROM leases ORDER BY lease_id DESC LIMIT 1)",
            last = first + count - 1,
            service = service("service"),
            expires = if due == "NULL" { "expires_at - 82800000000" } else { due },
        )
    };
    let later = "expires_at + 43200000000";
    for statement in [
        format!(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {SERVICES})
             INSERT INTO services (name, created_at) SELECT 's' || n, 1 FROM numbers"
        ),
        copy(1, PAST, "'expired'", "NULL", "expires_at - 82800000000"),
        copy(PAST + 1, LIVE, "state", later, "NULL"),
    ] {
        site.write_store(&statement).await;
    }
}

/// Lets `count` live leases end at the same time, in two seconds; each round takes others.
pub async fn end_at_once(site: &Site, round: i64, count: i64) {
    let first = PAST + round * count;
    let end = format!(
        "UPDATE leases SET due_at = {{now}} + 2000000, expires_at = {{now}} + 2000000
         WHERE lease_id IN (SELECT lease_id FROM leases WHERE lease_id > printf('%026d', {first})
                            AND lease_id <= printf('%026d', {first} + {count}))"
    );
    site.write_store(&end).await;
}

/// Number of leases that are due and have not ended.
pub async fn overdue(site: &Site) -> i64 {
    let overdue = "SELECT count(*) FROM leases WHERE due_at <= {now}";
    site.stored.count(overdue).await
}
