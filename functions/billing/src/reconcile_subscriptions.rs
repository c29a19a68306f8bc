//! Compares the subscriptions at the payment provider with billing's rows, every hour.
//!
//! It changes nothing at the provider. It reports the disagreements, and a person decides.

use std::time::Duration;

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, SiteId, Timestamp};
use lambda::{Deadline, Step};
use payments::{Finding, Report};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::{Commit, StoreError, Table, Transaction, from_item};
use tokio::time::timeout;

use crate::{
    BillingError,
    provider::Provider,
    reconciliation::{self, ProviderSubscription, Row, RowState, Snapshot},
    record_id,
};

/// The dependencies of the step.
#[derive(Debug)]
pub struct ReconcileSubscriptions {
    /// The billing table.
    pub billing: Table,
    /// The payment provider.
    pub provider: Provider,
    /// The maximum duration of a comparison. It is less than the function's timeout.
    pub timeout: Duration,
}

/// The step's reply. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The number of running subscriptions at the provider that name a site.
    pub running: usize,
    /// The number of rows with status `ACTIVE`.
    pub active: usize,
    /// The number of findings.
    pub found: usize,
}

/// The projected attributes of a row of the table. An idempotency record has only `id` and `status`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScannedRow {
    id: String,
    status: Option<String>,
    site_id: Option<SiteId>,
    provider_subscription_id: Option<String>,
    at: Option<Timestamp>,
}

impl Step for ReconcileSubscriptions {
    type Command = EventBridgeEvent<Value>;
    type Reply = Reply;
    type Error = BillingError;

    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, _: Self::Command, now: Timestamp) -> Result<Reply, BillingError> {
        let deadline = Deadline::after(self.timeout);
        // A partial comparison would report wrong findings. The step therefore compares everything or fails.
        let timed_out = |_| BillingError::Timeout(self.timeout);
        let (snapshot, foreign) =
            timeout(deadline.remaining(), self.snapshot()).await.map_err(timed_out)??;
        let key = Report::key();
        let previous: Option<Report> = self.billing.get(&key).await?;
        let report = reconciliation::report(&snapshot, foreign, previous.as_ref(), now);
        for Finding { kind, site_id, provider_subscription_id, first_seen, .. } in &report.findings
        {
            tracing::warn!(
                kind = kind.name(),
                siteId = %site_id,
                providerSubscriptionId = %provider_subscription_id,
                firstSeen = %first_seen,
                "the provider and the billing table disagree"
            );
        }
        let put = Transaction::on(&self.billing);
        let put = put.put_if_newer(&self.billing, &key, &report, report.sequence);
        if let Commit::Refused(_) = put.commit().await? {
            tracing::info!("a newer report exists, so this one is not stored");
        }
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        lambda::report("SubscriptionFindings", report.found as f64);
        let Report { running, active, found, .. } = report;
        Ok(Reply { running, active, found })
    }
}

impl ReconcileSubscriptions {
    /// Reads both sides. Also returns the number of subscriptions at the provider that name no site.
    async fn snapshot(&self) -> Result<(Snapshot, usize), BillingError> {
        let mut snapshot = self.rows().await?;
        let mut foreign = 0;
        for subscription in self.provider.session(None).running_subscriptions().await? {
            let site = subscription.metadata.get("siteId").and_then(|site| site.parse().ok());
            let Some(site_id) = site else {
                foreign += 1;
                continue;
            };
            snapshot.provider_subscriptions.push(ProviderSubscription {
                id: subscription.id.into(),
                site_id,
                created: Timestamp::from_millis(subscription.created.saturating_mul(1000)),
            });
        }
        Ok((snapshot, foreign))
    }

    /// Reads billing's side. A row that can't be read counts as missing.
    async fn rows(&self) -> Result<Snapshot, StoreError> {
        let mut snapshot = Snapshot::default();
        let scan = self.billing.scan().project("id, #status, siteId, providerSubscriptionId, #at");
        for item in scan.all().await? {
            let id = item.get("id").cloned();
            match from_item(item, || "of the billing table".to_owned()) {
                Ok(row) => add_row(row, &mut snapshot),
                Err(error) => tracing::error!(?id, %error, "a row can't be read"),
            }
        }
        Ok(snapshot)
    }
}

/// Adds a row of the table to `snapshot`. The rows of the circuit and of the report are ignored.
fn add_row(scanned: ScannedRow, snapshot: &mut Snapshot) {
    let ScannedRow { id, status, site_id, provider_subscription_id, at } = scanned;
    let status = status.as_deref().unwrap_or_default();
    let onboarding = id.rsplit_once('#').and_then(|(_, id)| id.parse::<OnboardingId>().ok());
    if let Some(onboarding) = onboarding
        && id == format!("idempotency#{}", record_id(onboarding))
    {
        if status == "INPROGRESS" {
            snapshot.unfinished.insert(onboarding);
        }
        return;
    }
    let state = match status {
        "ACTIVE" => RowState::Active,
        "FAILED" => RowState::Failed,
        "CANCELLING" | "CANCELLED" => RowState::Cancelled,
        _ => return,
    };
    if let (Some(site_id), Some(at)) = (site_id, at) {
        snapshot.rows.insert(site_id, Row { state, provider_subscription_id, at });
    }
}
