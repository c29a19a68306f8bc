//! `DELETE /sites/{siteId}`: takes an active site out of service. It starts the same teardown that undoes a
//! failed onboarding.

use audit::{Action, Entry, Trail};
use contracts::{OnboardingId, SagaContext, SiteId, Timestamp, saga::TeardownInput};
use lambda::http::{self, Caller, Problem, Request, Response};
use machines::StateMachine;
use serde::Serialize;
use store::{Decision, Table, Transaction};

use crate::{
    MAX_ATTEMPTS, SiteRow, SitesError, Status,
    get_site::{site_id, site_not_found},
};

/// The dependencies of the function `decommission-site`.
#[derive(Debug)]
pub struct DecommissionSite {
    /// The sites table.
    pub sites: Table,
    /// The state machine `site-teardown`.
    pub teardown: StateMachine,
    /// The audit trail.
    pub trail: Trail,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    site_id: SiteId,
    onboarding_id: OnboardingId,
    status: Status,
}

impl DecommissionSite {
    /// Starts the teardown and returns 202. A repeated request returns 202, too. Each accepted request is an entry of
    /// the audit trail.
    ///
    /// Returns 403 if the caller may not change sites. Returns 404 for an unknown site and for one of another operator. Returns 409 for a site that is still being onboarded or was rejected.
    pub async fn handle(
        &self,
        caller: &Caller,
        request: &Request,
        now: Timestamp,
    ) -> Result<Response, Problem> {
        caller.require(caller.scope.may_write())?;
        http::reject_query(request)?;
        let site = site_id(request)?;
        let row = self.row(site).await?;
        let row = row.filter(|row| row.owned.operator_id == caller.operator);
        let row = row.ok_or_else(|| site_not_found(site))?;
        let status = match row.status() {
            Status::Active | Status::Decommissioning => Status::Decommissioning,
            Status::Decommissioned => Status::Decommissioned,
            Status::Onboarding => {
                return Err(Problem::conflict(
                    "still-onboarding",
                    "The site is being onboarded. Wait until it is ACTIVE, then delete it. If its \
                     onboarding fails, it is undone automatically.",
                ));
            }
            Status::Rejected => {
                return Err(Problem::conflict(
                    "rejected",
                    "The site's onboarding failed and was undone; there is nothing to delete.",
                ));
            }
        };
        let reply = Reply { site_id: site, onboarding_id: row.onboarding_id, status };
        self.record(caller, site, now).await?;
        if status == Status::Decommissioning {
            self.decommission(site, row).await?;
        }
        let target = format!("/sites/{site}");
        Ok(Response::new(202, &reply)?.at(http::relative_location(request, &target, &target)))
    }

    async fn row(&self, site: SiteId) -> Result<Option<SiteRow>, SitesError> {
        Ok(self.sites.get(&SiteRow::key(site)).await?)
    }

    /// Writes the entry of the audit trail. No site is decommissioned over HTTP without one, so it is written before
    /// the teardown starts.
    async fn record(
        &self,
        caller: &Caller,
        site: SiteId,
        now: Timestamp,
    ) -> Result<(), SitesError> {
        let entry = Entry {
            operator_id: caller.operator,
            actor: caller.actor.clone(),
            action: Action::DecommissionSite,
            target: site.to_string(),
            details: None,
        };
        Ok(self.trail.write(&entry, now).await?)
    }

    /// Starts the teardown, then sets the status to DECOMMISSIONING.
    ///
    /// The teardown is started first, so that the site is closed even if the function ends in between. The
    /// execution's name is derived from the onboarding, so a second start has no effect.
    async fn decommission(&self, site: SiteId, row: SiteRow) -> Result<(), SitesError> {
        let saga = SagaContext::for_site(row.owned.operator_id, site, None);
        let name = format!("decommission-{}", saga.onboarding_id);
        let input = TeardownInput::new(saga, None);
        self.teardown.start(&name, serde_json::json!(input).to_string()).await?;
        self.set_decommissioning(site, row).await
    }

    /// Sets the status to DECOMMISSIONING if it is ACTIVE. If the site is changed at the same time, this is decided
    /// again on the row that the refusal returned, so that the change is kept.
    async fn set_decommissioning(&self, site: SiteId, row: SiteRow) -> Result<(), SitesError> {
        let key = SiteRow::key(site);
        let decide = |row: &SiteRow| -> Result<_, SitesError> {
            if row.status() != Status::Active {
                tracing::info!(%site, "a teardown or another request has already changed the status");
                return Ok(Decision::Keep(()));
            }
            let decommissioning = row.clone().with_status(Status::Decommissioning);
            let transaction = Transaction::on(&self.sites).put_if_unchanged(
                &self.sites,
                &key,
                &decommissioning,
                Status::Active.name(),
                row.sequence,
            );
            Ok(Decision::Change(transaction, ()))
        };
        let set = store::decide_and_commit(MAX_ATTEMPTS, &key, row, decide).await?;
        set.ok_or(SitesError::Busy(site))
    }
}
