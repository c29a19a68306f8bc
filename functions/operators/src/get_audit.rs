//! `GET /audit`: lists the administrative actions that concern an operator, newest first.

use audit::Entry;
use contracts::{OperatorId, Timestamp};
use lambda::http::{Caller, Problem, Request, Response};
use serde::Serialize;
use store::{Item, StoreError, Table, from_item};

use crate::{
    listing::{Listing, Order, time},
    named_operator,
};

/// The dependencies of the function `get-audit`.
#[derive(Debug)]
pub struct GetAudit {
    /// The audit table.
    pub audit: Table,
}

/// An entry of the list.
#[derive(Debug, PartialEq, Serialize)]
struct Listed {
    at: Timestamp,
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Debug, Serialize)]
struct Page {
    entries: Vec<Listed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl GetAudit {
    /// Returns a page of the entries that concern the caller's operator. For operators and administrators.
    ///
    /// An administrator may name another operator. Returns 403 if another caller does.
    pub async fn handle(&self, caller: &Caller, request: &Request) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let mut operator = caller.operator;
        let listing = Listing::with_parameter(request, Order::NewestFirst, "operatorId", |id| {
            operator = named_operator(id)?;
            Ok(())
        })?;
        caller.require_operator(operator)?;
        let page = self.list(operator, listing).await;
        Response::new(200, &page.map_err(|error| Problem::from_fault(&error))?)
    }

    async fn list(&self, operator: OperatorId, listing: Listing) -> Result<Page, StoreError> {
        let query = self
            .audit
            .query("operatorId = :operator AND #at < :after")
            .text("operator", operator)
            .consistent();
        let (items, next) = listing.read(query, "at").await?;
        let entries = items.into_iter().map(listed).collect::<Result<_, _>>()?;
        Ok(Page { entries, next })
    }
}

fn listed(item: Item) -> Result<Listed, StoreError> {
    let name = || "of the audit table".to_owned();
    let at = time(&item, "at").ok_or_else(|| StoreError::Corrupt {
        row: name(),
        reason: "at does not begin with a time".to_owned(),
    })?;
    Ok(Listed { at, entry: from_item(item, name)? })
}
