//! `DELETE /sites/{siteId}`: takes a live site out of service, by the same teardown that undoes a
//! failed onboarding.

use contracts::{OnboardingId, Saga, SiteId, saga::TeardownInput};
use lambda::http::{self, Answer, Problem, Request};
use machines::Machine;
use serde::Serialize;
use store::{Commit, Table, Transaction};

use crate::{
    SiteRow, SitesError, Status,
    get_site::{no_site, site_id},
};

/// What the step needs.
#[derive(Debug)]
pub struct DecommissionSite {
    /// The sites table.
    pub sites: Table,
    /// The state machine `site-teardown`.
    pub teardown: Machine,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    site_id: SiteId,
    onboarding_id: OnboardingId,
    status: Status,
}

impl DecommissionSite {
    /// 202 once the teardown is on its way, the first time and every time after; 409 for a site
    /// that is not in service.
    pub async fn handle(&self, request: &Request) -> Result<Answer, Problem> {
        http::no_query(request)?;
        let site = site_id(request)?;
        let row = self.row(site).await.map_err(|error| Problem::of(&error))?;
        let row = row.ok_or_else(|| no_site(site))?;
        let status = match row.status {
            Status::Active | Status::Decommissioning => {
                self.decommission(site, &row).await.map_err(|error| Problem::of(&error))?;
                Status::Decommissioning
            }
            Status::Decommissioned => Status::Decommissioned,
            Status::Onboarding => {
                return Err(Problem::conflict(
                    "still-onboarding",
                    "The site is being onboarded. Wait until it is ACTIVE, then delete it; if its \
                     onboarding fails, it is undone without you.",
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
        let target = format!("/sites/{site}");
        Ok(Answer::new(202, &reply)?.at(http::relative(request, &target, &target)))
    }

    async fn row(&self, site: SiteId) -> Result<Option<SiteRow>, SitesError> {
        Ok(self.sites.get(&SiteRow::key(site)).await?)
    }

    /// Starts the teardown first: should we end right after it, the site still gets closed. The
    /// execution's name makes a second start a no-op.
    async fn decommission(&self, site: SiteId, row: &SiteRow) -> Result<(), SitesError> {
        let saga = Saga::of_site(site, None);
        let name = format!("decommission-{}", saga.onboarding_id);
        let input = TeardownInput::new(saga, None);
        self.teardown.start(&name, serde_json::json!(input).to_string()).await?;
        let leaving = SiteRow { status: Status::Decommissioning, ..row.clone() };
        let commit = Transaction::on(&self.sites)
            .replace(&self.sites, &SiteRow::key(site), &leaving, Status::Active.name())
            .commit()
            .await?;
        if let Commit::Refused(_) = commit {
            tracing::info!(%site, "the teardown is ahead of us");
        }
        Ok(())
    }
}
