use super::{
    dialect::{Connection, Pool},
    row::{exactly_one, inconsistent, store_error},
};
use crate::{broker::ports::StoreError, domain::arn::AccountId};

pub(super) async fn id(pool: &Pool) -> Result<String, StoreError> {
    sqlx::query_scalar("SELECT id FROM deployment")
        .fetch_one(pool)
        .await
        .map_err(store_error)
}

pub(super) async fn account(pool: &Pool) -> Result<Option<AccountId>, StoreError> {
    let account: Option<String> = sqlx::query_scalar("SELECT account FROM deployment")
        .fetch_one(pool)
        .await
        .map_err(store_error)?;
    let account = account.map(|text| text.parse()).transpose();
    account.map_err(|_| inconsistent("deployment", "account"))
}

pub(super) async fn bind_account(
    tx: &mut Connection,
    account: &AccountId,
) -> Result<(), StoreError> {
    let done = sqlx::query("UPDATE deployment SET account = $1 WHERE account IS NULL")
        .bind(account.as_str())
        .execute(&mut *tx)
        .await
        .map_err(store_error)?;
    exactly_one(&done)
}
