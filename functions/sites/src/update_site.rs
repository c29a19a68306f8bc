//! `PATCH /sites/{siteId}`: changes the name, the contact or the location of an active site, by a JSON merge patch.

use audit::{Action, Entry, Trail};
use contracts::{SagaContext, SiteId, Timestamp, events::SiteChanged, site_patch::SitePatch};
use lambda::http::{self, Caller, Problem, Request, Response};
use store::{Decision, NewEvent, Outbox, Table, Transaction};

use crate::{
    MAX_ATTEMPTS, SiteRow, SitesError, Status,
    get_site::{Site, StoredSite, site_id, site_not_found},
};

/// The maximum size of the request body, in bytes.
const MAX_BODY_BYTES: usize = 8 * 1024;

/// The dependencies of the function `update-site`.
#[derive(Debug)]
pub struct UpdateSite {
    /// The sites table.
    pub sites: Table,
    /// The outbox for `SiteChanged`.
    pub outbox: Outbox,
    /// The audit trail.
    pub trail: Trail,
}

/// A change to commit.
#[derive(Debug, PartialEq)]
struct SiteUpdate {
    /// The row after the change.
    row: SiteRow,
    /// The names of the fields that change.
    changed: Vec<String>,
}

/// Returns the change that the patch makes to the row. Returns `None` if it changes nothing.
fn decide_update(row: &SiteRow, patch: &SitePatch) -> Option<SiteUpdate> {
    let name = patch.name.clone().unwrap_or_else(|| row.name.clone());
    let contact = patch.contact_after(row.contact.as_ref());
    let location = patch.location_after(row.location);
    let changed: Vec<_> = [
        ("name", name != row.name),
        ("contact", contact != row.contact),
        ("location", location != row.location),
    ]
    .into_iter()
    .filter(|(_, is_changed)| *is_changed)
    .map(|(field, _)| field.to_owned())
    .collect();
    if changed.is_empty() {
        return None;
    }
    let sequence = row.sequence + 1;
    Some(SiteUpdate { row: SiteRow { name, location, contact, sequence, ..row.clone() }, changed })
}

/// Refuses (409) a site that is not ACTIVE. While a site is ONBOARDING or DECOMMISSIONING, only steps of the saga
/// change it. A closed site never changes.
fn require_active(row: &SiteRow) -> Result<(), Problem> {
    let (name, detail) = match row.status() {
        Status::Active => return Ok(()),
        Status::Onboarding => (
            "still-onboarding",
            "The site is being onboarded. Wait until it is ACTIVE, then send the change again.",
        ),
        Status::Rejected => {
            ("rejected", "The site's onboarding failed and was undone. It can't be changed.")
        }
        Status::Decommissioning | Status::Decommissioned => (
            "decommissioned",
            "The site was taken out of service, or is being taken out of service. It can't be \
             changed.",
        ),
    };
    Err(Problem::conflict(name, detail))
}

impl UpdateSite {
    /// Changes the site and returns 200 with the site as `GET` returns it. A patch that changes nothing writes nothing, so a
    /// repeated request has no second effect.
    ///
    /// Each change is an event `SiteChanged` and an entry of the audit trail, in the transaction of the row. If another
    /// request changes the site at the same time, the patch is applied to the site as it is then.
    ///
    /// Returns 400 for an invalid patch, 403 if the caller may not change sites, 404 for an unknown site and for one of another
    /// operator, 409 for a site that is not ACTIVE and 412 if `If-Match` does not have the site's current `ETag`.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        http::reject_query(request)?;
        let site = site_id(request)?;
        let patch: SitePatch = http::read(request, MAX_BODY_BYTES)?;
        let stored = StoredSite::read(&self.sites, caller.operator, site).await?;
        let stored = stored.ok_or_else(|| site_not_found(site))?;
        let response = |row: &SiteRow| {
            let stored = StoredSite { row: row.clone(), ..stored.clone() };
            Response::new(200, &Site::new(site, stored, caller))
        };
        let decide = |row: &SiteRow| -> Result<_, Problem> {
            require_active(row)?;
            let current = response(row)?;
            http::require_match(request, &current)?;
            let Some(update) = decide_update(row, &patch) else {
                return Ok(Decision::Keep(current));
            };
            let transaction = self.transaction(caller, site, row, &update, now);
            Ok(Decision::Change(transaction, response(&update.row)?))
        };
        let (key, row) = (SiteRow::key(site), stored.row.clone());
        let response = store::decide_and_commit(MAX_ATTEMPTS, &key, row, decide).await?;
        Ok(response.ok_or(SitesError::Busy(site))?)
    }

    /// Returns the transaction of the row, the event and the entry of the audit trail. Its condition is that the row is still
    /// `before`.
    fn transaction(
        &self,
        caller: &Caller,
        site_id: SiteId,
        before: &SiteRow,
        SiteUpdate { row, changed }: &SiteUpdate,
        now: Timestamp,
    ) -> Transaction {
        let saga = SagaContext::for_site(row.owned.operator_id, site_id, None);
        let event = SiteChanged {
            site_id,
            changed: changed.clone(),
            name: row.name.clone(),
            location: row.location,
        };
        let entry = Entry {
            operator_id: caller.operator,
            actor: caller.actor.clone(),
            action: Action::UpdateSite,
            target: site_id.to_string(),
            details: Some(changed.join(", ")),
        };
        let transaction = Transaction::on(&self.sites)
            .put_if_unchanged(
                &self.sites,
                &SiteRow::key(site_id),
                row,
                before.status().name(),
                before.sequence,
            )
            .event(&self.outbox, NewEvent::in_saga(saga, site_id, row.sequence, now, event));
        self.trail.add(transaction, &entry, now)
    }
}
