use async_trait::async_trait;
use jiff::Timestamp;

use super::{
    SqlStore,
    dialect::{Arguments, Connection, Db, Row},
    row::{exactly_one, get, inconsistent, micros, parse, parse_optional, store_error, time},
};
use crate::{
    broker::ports::{Approvals, StoreError},
    domain::{
        approval::{Approval, ApprovalId, ApprovedChange, OPEN_MAX, Person},
        audit::AuditEvent,
    },
};

const TABLE: &str = "approvals";

#[async_trait]
impl Approvals for SqlStore {
    async fn approvals(&self, now: Timestamp) -> Result<Vec<Approval>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM approvals WHERE expires_at > $1 ORDER BY requested_at, approval_id",
        )
        .bind(micros(now))
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        // An unreadable approval, e.g. of an earlier version, must not make the others unusable.
        let read = |row| {
            let read = approval(row);
            read.inspect_err(|error| tracing::warn!(%error, "an approval is passed over"))
                .ok()
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    async fn request_approval(
        &self,
        approval: &Approval,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let approval = approval.clone();
        self.change(audit, move |tx| {
            Box::pin(async move { insert(tx, &approval).await })
        })
        .await
    }

    async fn give_approval(
        &self,
        id: &ApprovalId,
        by: &Person,
        now: Timestamp,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let give = sqlx::query(
            "UPDATE approvals SET approved_by = $1, approver_proof = $4 WHERE approval_id = $2
             AND approved_by IS NULL AND requested_by <> $1 AND requester_proof <> $4 AND expires_at > $3",
        )
        .bind(by.name.to_string())
        .bind(id.to_string())
        .bind(micros(now))
        .bind(by.proof.clone());
        self.one(give, audit).await
    }

    async fn reject_approval(&self, id: &ApprovalId, audit: AuditEvent) -> Result<(), StoreError> {
        let reject =
            sqlx::query("DELETE FROM approvals WHERE approval_id = $1").bind(id.to_string());
        self.one(reject, audit).await
    }

    async fn use_approval(
        &self,
        id: &ApprovalId,
        now: Timestamp,
        audit: AuditEvent,
    ) -> Result<(), StoreError> {
        let used = sqlx::query(
            "DELETE FROM approvals WHERE approval_id = $1
             AND approved_by IS NOT NULL AND expires_at > $2",
        )
        .bind(id.to_string())
        .bind(micros(now));
        self.one(used, audit).await
    }
}

type Query = sqlx::query::Query<'static, Db, Arguments>;

impl SqlStore {
    /// Makes a change of exactly one row; otherwise `Conflict`.
    async fn one(&self, query: Query, audit: AuditEvent) -> Result<(), StoreError> {
        self.change(audit, move |tx| {
            Box::pin(async move {
                let done = query.execute(&mut *tx).await.map_err(store_error)?;
                exactly_one(&done)
            })
        })
        .await
    }
}

async fn insert(tx: &mut Connection, approval: &Approval) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM approvals WHERE expires_at <= $1")
        .bind(micros(approval.requested_at))
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    let done = sqlx::query(
        "INSERT INTO approvals (approval_id, change, requested_by, requester_proof, requested_at, expires_at)
         SELECT $1, $2, $3, $7, $4, $5
         WHERE (SELECT count(*) FROM approvals WHERE requester_proof = $7) < $6",
    )
    .bind(approval.id.as_str())
    .bind(approval.change.to_json())
    .bind(approval.requested_by.name.as_str())
    .bind(micros(approval.requested_at))
    .bind(micros(approval.expires_at))
    .bind(i64::try_from(OPEN_MAX).unwrap_or(i64::MAX))
    .bind(&approval.requested_by.proof)
    .execute(&mut *tx)
    .await
    .map_err(store_error)?;
    exactly_one(&done)
}

fn approval(row: &Row) -> Result<Approval, StoreError> {
    let change: String = get(row, "change")?;
    let approved_by = parse_optional(row, TABLE, "approved_by")?;
    let approver_proof: Option<String> = get(row, "approver_proof")?;
    Ok(Approval {
        id: parse(row, TABLE, "approval_id")?,
        change: ApprovedChange::from_json(&change).map_err(|error| inconsistent(TABLE, error))?,
        requested_by: Person {
            name: parse(row, TABLE, "requested_by")?,
            proof: get(row, "requester_proof")?,
        },
        requested_at: time(row, TABLE, "requested_at")?,
        expires_at: time(row, TABLE, "expires_at")?,
        approved_by: approved_by
            .zip(approver_proof)
            .map(|(name, proof)| Person { name, proof }),
    })
}
