//! Undoes `initialize-subscription`: nothing is paid for any more, and a tombstone stays.
//!
//! If something may exist at the provider, the undo has three parts, and a retry continues after a crash in any of
//! them. Otherwise it has only the third, without an event.
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
    WriteFence { from: Option<&'static str>, fenced: SubscriptionRow },
    /// The fence exists: clean up the provider, then write the tombstone.
    CleanUp(SubscriptionRow),
    /// Nothing exists at the provider: write only the tombstone.
    WriteTombstone { from: Option<&'static str>, sequence: u64 },
    /// The tombstone exists.
    AlreadyCancelled,
}

/// The values for writing the tombstone.
struct TombstoneParams {
    /// The status that the tombstone replaces. `None` if there is no row.
    from: Option<&'static str>,
    /// The tombstone's sequence.
    sequence: u64,
    /// The provider's id of the subscription that the undo cancelled. The event contains it.
    cancelled_id: Option<String>,
    /// The checkpoint of an unfinished initialization. Its customer was cleaned up.
    checkpoint: Option<Checkpoint>,
}

/// Decides what the undo has to do. `unfinished_checkpoint` is the checkpoint of an initialization that began and did
/// not finish.
fn decide_undo(
    saga: SagaContext,
    existing: Option<SubscriptionRow>,
    unfinished_checkpoint: Option<Checkpoint>,
    now: Timestamp,
) -> Decision {
    let fence = |from, sequence, customer_id, provider_subscription_id| Decision::WriteFence {
        from,
        fenced: SubscriptionRow {
            saga,
            state: Subscription::Cancelling { customer_id, provider_subscription_id },
            sequence,
            at: now,
        },
    };
    let Some(row) = existing else {
        return match unfinished_checkpoint {
            Some(checkpoint) => fence(None, 0, checkpoint.customer_id, None),
            None => Decision::WriteTombstone { from: None, sequence: 0 },
        };
    };
    let from = row.state.name();
    match row.state {
        Subscription::Active { customer_id, provider_subscription_id, .. } => {
            fence(Some(from), row.sequence, Some(customer_id), Some(provider_subscription_id))
        }
        Subscription::Failed { .. } => {
            Decision::WriteTombstone { from: Some(from), sequence: row.sequence }
        }
        Subscription::Cancelling { .. } => Decision::CleanUp(row),
        Subscription::Cancelled => Decision::AlreadyCancelled,
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
        let existing = self.billing.get(&key).await?;
        let unfinished_checkpoint = self.unfinished_checkpoint(saga).await?;

        let params = match decide_undo(saga, existing, unfinished_checkpoint, now) {
            Decision::AlreadyCancelled => return Ok(reply),
            Decision::WriteTombstone { from, sequence } => {
                TombstoneParams { from, sequence, cancelled_id: None, checkpoint: None }
            }
            Decision::WriteFence { from, fenced } => {
                self.write_fence(saga, from, &fenced).await?;
                self.clean_up(saga, session, fenced).await?
            }
            Decision::CleanUp(fenced) => self.clean_up(saga, session, fenced).await?,
        };

        let TombstoneParams { from, sequence, cancelled_id, checkpoint } = params;
        let tombstone = SubscriptionRow { saga, state: Subscription::Cancelled, sequence, at: now };
        let mut transaction = Transaction::on(&self.billing);
        transaction = match from {
            None => transaction.create(&self.billing, &key, &tombstone),
            Some(from) => transaction.put_if_status(&self.billing, &key, &tombstone, from),
        };
        // The transaction has a condition on the idempotency record, even if there was neither a row nor a record: an
        // initialization may have begun since then. Its lock makes this transaction fail. Without the condition, that
        // initialization would pay although the tombstone exists.
        let record = record_id(saga.onboarding_id);
        transaction =
            self.idempotency.delete_record(transaction, &record, checkpoint.as_ref(), now)?;
        if let Some(provider_subscription_id) = cancelled_id {
            let event = SubscriptionCancelled { site_id: saga.site_id, provider_subscription_id };
            transaction = transaction.event(
                &self.outbox,
                NewEvent::in_saga(saga, subscription_id, sequence, now, event),
            );
        }
        match transaction.commit().await? {
            Commit::Done => Ok(reply),
            Commit::Refused(_) => Err(BillingError::Busy(subscription_id)),
        }
    }
}

impl CancelSubscription {
    async fn unfinished_checkpoint(
        &self,
        saga: SagaContext,
    ) -> Result<Option<Checkpoint>, BillingError> {
        let unfinished = self.idempotency.unfinished(&record_id(saga.onboarding_id)).await?;
        Ok(unfinished.map(Option::unwrap_or_default))
    }

    async fn write_fence(
        &self,
        saga: SagaContext,
        from: Option<&'static str>,
        fenced: &SubscriptionRow,
    ) -> Result<(), BillingError> {
        let id = SubscriptionId::from_onboarding(saga.onboarding_id);
        let key = SubscriptionRow::key(id);
        let transaction = Transaction::on(&self.billing);
        let transaction = match from {
            None => transaction.create(&self.billing, &key, fenced),
            Some(from) => transaction.put_if_status(&self.billing, &key, fenced, from),
        };
        match transaction.commit().await? {
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
    ) -> Result<TombstoneParams, BillingError> {
        let from = fenced.state.name();
        let Subscription::Cancelling { customer_id, provider_subscription_id } = fenced.state
        else {
            return Err(BillingError::Busy(SubscriptionId::from_onboarding(saga.onboarding_id)));
        };
        let checkpoint = self.unfinished_checkpoint(saga).await?;
        let late_customer =
            checkpoint.as_ref().and_then(|checkpoint| checkpoint.customer_id.clone());
        let mut customers: Vec<CustomerId> = customer_id.into_iter().chain(late_customer).collect();
        customers.dedup();
        for customer in &customers {
            session.clean_up(customer).await?;
        }
        let events = u64::from(provider_subscription_id.is_some());
        Ok(TombstoneParams {
            from: Some(from),
            sequence: fenced.sequence + events,
            cancelled_id: provider_subscription_id,
            checkpoint,
        })
    }
}
