//! `GET /audit`: lists the administrative actions that concern an operator, newest first.

use audit::{Action, Entry, Trail};
use contracts::Timestamp;
use lambda::http::{Caller, Problem, Request, Response};
use serde::Serialize;
use store::{Item, StoreError, Table, from_item};

use crate::{
    listing::{Listing, Order, time},
    record_read,
};

/// The dependencies of the function `get-audit`.
#[derive(Debug)]
pub struct GetAudit {
    /// The audit table.
    pub audit: Table,
    /// The same table, to add entries.
    pub trail: Trail,
}

/// An entry of the list.
#[derive(Debug, PartialEq, Serialize)]
struct Listed {
    at: Timestamp,
    #[serde(flatten)]
    entry: Entry<String>,
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
    /// An administrator may name another operator. That is an entry of the same trail, which later requests show.
    /// Returns 403 if another caller does.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        let listing = Listing::of_operator(caller, request, Order::NewestFirst)?;
        let operator = listing.operator();
        let page = self.list(listing).await?;
        record_read(&self.trail, caller, Action::ReadAudit, operator, now).await?;
        Response::new(200, &page)
    }

    async fn list(&self, listing: Listing) -> Result<Page, StoreError> {
        let query = self
            .audit
            .query("operatorId = :operator AND #at < :after")
            .text("operator", listing.operator())
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
