//! `GET /keys`: lists the API keys of an operator.

use contracts::{OperatorId, Scope, Timestamp, operators::KeyId};
use lambda::http::{Caller, Problem, Request, Response};
use serde::{Deserialize, Serialize};
use store::{StoreError, Table, from_item};

use crate::{
    listing::{Listing, Order},
    named_operator,
};

/// The dependencies of the function `get-key`.
#[derive(Debug)]
pub struct GetKey {
    /// The keys table.
    pub keys: Table,
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
    /// An administrator may name another operator. Returns 403 if another caller does.
    pub async fn handle(&self, caller: &Caller, request: &Request) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let mut operator = caller.operator;
        let listing = Listing::with_parameter(request, Order::OldestFirst, "operatorId", |id| {
            operator = named_operator(id)?;
            Ok(())
        })?;
        caller.require_operator(operator)?;
        let page = self.list(operator, listing).await;
        Response::new(200, &page.map_err(|error| Problem::from_fault(&error))?)
    }

    async fn list(&self, operator: OperatorId, listing: Listing) -> Result<Page, StoreError> {
        let query = self
            .keys
            .query("operatorId = :operator AND listed > :after")
            .index("byOperator")
            .text("operator", operator);
        let (items, next) = listing.read(query, "listed").await?;
        let summary = |item| from_item(item, || "of the keys table".to_owned());
        let keys = items.into_iter().map(summary).collect::<Result<_, _>>()?;
        Ok(Page { keys, next })
    }
}
