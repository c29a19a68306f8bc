//! Undoes `initialize-subscription`: nothing is paid for any more, and a tombstone stays.
//!
//! The undo has three parts, and a retry continues after a crash in any of them:
//!
//! 1. The row becomes `CANCELLING`. From then on no initialization can commit.
//! 2. The provider is cleaned up.
//! 3. The tombstone and the event commit.

use contracts::{
    OnboardingId, SagaContext, SubscriptionId, Timestamp, events::SubscriptionCancelled,
};
use lambda::Step;
use serde::Serialize;
use store::{Commit, Idempotency, NewEvent, Outbox, Table, Transaction};

use crate::{
    BillingError, Checkpoint, Subscription, SubscriptionRow,
    commands::ProviderStep,
    provider::{Provider, Session},
    record_id,
    stripe::CustomerId,
};

/// The dependencies of the step.
#[derive(Debug)]
pub struct CancelSubscription {
    /// The billing table.
    pub billing: Table,
    /// The idempotency records of `initialize-subscription`.
    pub idempotency: Idempotency,
    /// The outbox for `SubscriptionCancelled`.
    pub outbox: Outbox,
    /// The payment provider.
    pub provider: Provider,
}

/// The step's reply.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The subscription's id, derived from the onboarding.
    pub subscription_id: SubscriptionId,
}

#[derive(Debug, PartialEq)]
enum Decision {
    /// Write the fence (`CANCELLING`), then clean up the provider, then write the tombstone.
    Fence {
        from: Option<&'static str>,
        fenced: SubscriptionRow,
    },
    /// The fence exists: clean up the provider, then write the tombstone.
    CleanUp(SubscriptionRow),
    /// There is nothing at the provider: write only the tombstone.
    Bury {
        from: Option<&'static str>,
        sequence: u64,
    },
    Already,
}

/// The values for writing the tombstone.
struct Burial {
    /// The status that the tombstone replaces. `None` if there is no row.
    from: Option<&'static str>,
    /// The tombstone's sequence.
    sequence: u64,
    /// The provider's id of the subscription that the undo ended. It is part of the event.
    ended: Option<String>,
    /// The checkpoint of an unfinished initialization, whose customer was cleaned up.
    noted: Option<Checkpoint>,
}

/// Decides what the undo has to do. `unfinished` is the checkpoint of an initialization that began and did not
/// finish.
fn decide(
    saga: SagaContext,
    there: Option<SubscriptionRow>,
    unfinished: Option<Checkpoint>,
    now: Timestamp,
) -> Decision {
    let fence = |from, sequence, customer_id, provider_subscription_id| Decision::Fence {
        from,
        fenced: SubscriptionRow {
            saga,
            state: Subscription::Cancelling { customer_id, provider_subscription_id },
            sequence,
            at: now,
        },
    };
    let Some(row) = there else {
        return match unfinished {
            Some(checkpoint) => fence(None, 0, checkpoint.customer_id, None),
            None => Decision::Bury { from: None, sequence: 0 },
        };
    };
    let from = row.state.name();
    match row.state {
        Subscription::Active { customer_id, provider_subscription_id, .. } => {
            fence(Some(from), row.sequence, Some(customer_id), Some(provider_subscription_id))
        }
        Subscription::Failed { .. } => Decision::Bury { from: Some(from), sequence: row.sequence },
        Subscription::Cancelling { .. } => Decision::CleanUp(row),
        Subscription::Cancelled => Decision::Already,
    }
}

impl Step for CancelSubscription {
    type Command = SagaContext;
    type Reply = Reply;
    type Error = BillingError;

    fn correlation(saga: &SagaContext) -> Option<OnboardingId> {
        Some(saga.onboarding_id)
    }

    async fn run(&self, saga: SagaContext, now: Timestamp) -> Result<Reply, BillingError> {
        self.run_in(saga, &mut self.provider.session(None), now).await
    }
}

impl ProviderStep for CancelSubscription {
    fn provider(&self) -> &Provider {
        &self.provider
    }

    async fn run_in(
        &self,
        saga: SagaContext,
        session: &mut Session<'_>,
        now: Timestamp,
    ) -> Result<Reply, BillingError> {
        let subscription_id = SubscriptionId::from_onboarding(saga.onboarding_id);
        let key = SubscriptionRow::key(subscription_id);
        let reply = Reply { subscription_id };
        let there = self.billing.get(&key).await?;
        let unfinished = self.unfinished(saga).await?;

        let burial = match decide(saga, there, unfinished, now) {
            Decision::Already => return Ok(reply),
            Decision::Bury { from, sequence } => {
                Burial { from, sequence, ended: None, noted: None }
            }
            Decision::Fence { from, fenced } => {
                self.put(saga, from, &fenced).await?;
                self.clean_up(saga, session, fenced).await?
            }
            Decision::CleanUp(fenced) => self.clean_up(saga, session, fenced).await?,
        };

        let Burial { from, sequence, ended, noted } = burial;
        let tombstone = SubscriptionRow { saga, state: Subscription::Cancelled, sequence, at: now };
        let mut burying = Transaction::on(&self.billing);
        burying = match from {
            None => burying.create(&self.billing, &key, &tombstone),
            Some(from) => burying.put_if_status(&self.billing, &key, &tombstone, from),
        };
        // The record is removed even if there was neither a row nor a record: an initialization may have begun since,
        // and would otherwise pay although the tombstone exists.
        let record = record_id(saga.onboarding_id);
        burying = self.idempotency.forget(burying, &record, noted.as_ref(), now)?;
        if let Some(provider_subscription_id) = ended {
            let event = SubscriptionCancelled { site_id: saga.site_id, provider_subscription_id };
            burying = burying.event(
                &self.outbox,
                NewEvent::in_saga(saga, subscription_id, sequence, now, event),
            );
        }
        match burying.commit().await? {
            Commit::Done => Ok(reply),
            Commit::Refused(_) => Err(BillingError::Busy(subscription_id)),
        }
    }
}

impl CancelSubscription {
    async fn unfinished(&self, saga: SagaContext) -> Result<Option<Checkpoint>, BillingError> {
        let unfinished = self.idempotency.unfinished(&record_id(saga.onboarding_id)).await?;
        Ok(unfinished.map(Option::unwrap_or_default))
    }

    async fn put(
        &self,
        saga: SagaContext,
        from: Option<&'static str>,
        fenced: &SubscriptionRow,
    ) -> Result<(), BillingError> {
        let id = SubscriptionId::from_onboarding(saga.onboarding_id);
        let key = SubscriptionRow::key(id);
        let fencing = Transaction::on(&self.billing);
        let fencing = match from {
            None => fencing.create(&self.billing, &key, fenced),
            Some(from) => fencing.put_if_status(&self.billing, &key, fenced, from),
        };
        match fencing.commit().await? {
            Commit::Done => Ok(()),
            Commit::Refused(_) => Err(BillingError::Busy(id)),
        }
    }

    /// Cleans up every customer at the provider that is known by now. An initialization that was running when the
    /// fence was written may have stored a customer since.
    async fn clean_up(
        &self,
        saga: SagaContext,
        session: &mut Session<'_>,
        fenced: SubscriptionRow,
    ) -> Result<Burial, BillingError> {
        let from = fenced.state.name();
        let Subscription::Cancelling { customer_id, provider_subscription_id } = fenced.state
        else {
            return Err(BillingError::Busy(SubscriptionId::from_onboarding(saga.onboarding_id)));
        };
        let noted = self.unfinished(saga).await?;
        let late = noted.as_ref().and_then(|checkpoint| checkpoint.customer_id.clone());
        let mut customers: Vec<CustomerId> = customer_id.into_iter().chain(late).collect();
        customers.dedup();
        for customer in &customers {
            session.clean_up(customer).await?;
        }
        let told = u64::from(provider_subscription_id.is_some());
        Ok(Burial {
            from: Some(from),
            sequence: fenced.sequence + told,
            ended: provider_subscription_id,
            noted,
        })
    }
}
