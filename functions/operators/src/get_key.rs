//! `GET /keys`: lists the API keys of an operator.

use audit::{Action, Trail};
use contracts::{Scope, Timestamp, operators::KeyId};
use lambda::http::{Caller, Problem, Request, Response};
use serde::{Deserialize, Serialize};
use store::{StoreError, Table, from_item};

use crate::{
    listing::{Listing, Order},
    record_read,
};

/// The dependencies of the function `get-key`.
#[derive(Debug)]
pub struct GetKey {
    /// The keys table.
    pub keys: Table,
    /// The audit trail.
    pub trail: Trail,
}

/// An entry of the list. The attributes are those of the index `byOperator`, without the hash.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    key_id: KeyId,
    name: String,
    scope: Scope,
    prefix: String,
    created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_used_on: Option<String>,
}

#[derive(Debug, Serialize)]
struct Page {
    keys: Vec<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl GetKey {
    /// Returns a page of the keys of the caller's operator, in the order of creation. For operators and administrators.
    ///
    /// An administrator may name another operator, which is an entry of the audit trail. Returns 403 if another caller does.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let listing = Listing::of_operator(caller, request, Order::OldestFirst)?;
        let operator = listing.operator();
        let page = self.list(listing).await?;
        record_read(&self.trail, caller, Action::ListKeys, operator, now).await?;
        Response::new(200, &page)
    }

    async fn list(&self, listing: Listing) -> Result<Page, StoreError> {
        let query = self
            .keys
            .query("operatorId = :operator AND listed > :after")
            .index("byOperator")
            .text("operator", listing.operator());
        let (items, next) = listing.read(query, "listed").await?;
        let summary = |item| from_item(item, || "of the keys table".to_owned());
        let keys = items.into_iter().map(summary).collect::<Result<_, _>>()?;
        Ok(Page { keys, next })
    }
}
