//! The third step of the saga: opens a subscription, so that the operator pays for the site. It is undone by
//! `cancel-subscription`.

use contracts::{
    Event, OnboardingId, PaymentMethodId, Plan, SagaContext, SubscriptionId, Timestamp,
    events::{SubscriptionFailed, SubscriptionInitialized},
};
use lambda::Step;
use serde::{Deserialize, Serialize};
use store::{BeginResult, Commit, Idempotency, Lock, NewEvent, Outbox, Table, Transaction};
use uuid::Uuid;

use crate::{
    BillingError, Checkpoint, Refusal, Subscription, SubscriptionRow,
    commands::ProviderStep,
    provider::{Provider, Session},
    record_id,
    stripe::{self, CustomerId, Stripe, StripeError},
};

/// The dependencies of the step.
#[derive(Debug)]
pub struct InitializeSubscription {
    /// The billing table.
    pub billing: Table,
    /// The idempotency records, in the same table.
    pub idempotency: Idempotency,
    /// The outbox for `SubscriptionInitialized` and `SubscriptionFailed`.
    pub outbox: Outbox,
    /// The payment provider.
    pub provider: Provider,
}

/// The step's command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    /// The site and the onboarding.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// The site's name. It becomes the customer's name at the provider.
    pub name: String,
    /// The plan to subscribe to.
    pub plan: Plan,
    /// The payment method.
    pub payment_method: PaymentMethodId,
}

/// The step's reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The subscription's id, derived from the onboarding.
    pub subscription_id: SubscriptionId,
}

/// The stored result. A redelivered command gets its reply from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Outcome {
    Active,
    Refused(Refusal),
    Superseded,
}

impl Outcome {
    fn into_reply(self, subscription_id: SubscriptionId) -> Result<Reply, BillingError> {
        match self {
            Self::Active => Ok(Reply { subscription_id }),
            Self::Refused(refusal) => Err(BillingError::Refused(refusal)),
            Self::Superseded => Err(BillingError::Superseded(subscription_id)),
        }
    }
}

impl From<Subscription> for Outcome {
    fn from(state: Subscription) -> Self {
        match state {
            Subscription::Active { .. } => Self::Active,
            Subscription::Failed { refusal, .. } => Self::Refused(refusal),
            Subscription::Cancelling { .. } | Subscription::Cancelled => Self::Superseded,
        }
    }
}

/// Returns the outcome that the existing row implies, or `None` if there is no row.
fn outcome_for_existing(row: Option<SubscriptionRow>) -> Option<Outcome> {
    row.map(|row| row.state.into())
}

/// The result of the payment at the provider.
enum PaymentResult {
    Paid { customer: CustomerId, subscription: stripe::SubscriptionId },
    Refused(Refusal),
}

impl Step for InitializeSubscription {
    type Command = Command;
    type Reply = Reply;
    type Error = BillingError;

    fn correlation(command: &Command) -> Option<OnboardingId> {
        Some(command.saga.onboarding_id)
    }

    async fn run(&self, command: Command, now: Timestamp) -> Result<Reply, BillingError> {
        self.run_in(command, &mut self.provider.session(None), now).await
    }
}

impl ProviderStep for InitializeSubscription {
    fn provider(&self) -> &Provider {
        &self.provider
    }

    async fn run_in(
        &self,
        command: Command,
        session: &mut Session<'_>,
        now: Timestamp,
    ) -> Result<Reply, BillingError> {
        let subscription_id = SubscriptionId::from_onboarding(command.saga.onboarding_id);
        let record = record_id(command.saga.onboarding_id);
        let mut lock = match self.idempotency.begin(&record, &command_hash(&command), now).await? {
            BeginResult::Completed(outcome) => {
                return Outcome::into_reply(outcome, subscription_id);
            }
            BeginResult::InProgress(_) => return Err(BillingError::Busy(subscription_id)),
            BeginResult::Started(lock) => lock,
        };
        let outcome = self.initialize(&command, session, &mut lock, now).await;
        if outcome.is_err() {
            // After the release, the next attempt need not wait until the lease ends. If the release fails, it waits.
            if let Err(error) = self.idempotency.release(&lock).await {
                tracing::warn!(%error, "the lock can't be released and stays until its lease ends");
            }
        }
        outcome?.into_reply(subscription_id)
    }
}

impl InitializeSubscription {
    /// Pays and commits, unless the row exists already.
    async fn initialize(
        &self,
        command: &Command,
        session: &mut Session<'_>,
        lock: &mut Lock<Checkpoint>,
        now: Timestamp,
    ) -> Result<Outcome, BillingError> {
        let Command { saga, plan, .. } = *command;
        let site_id = saga.site_id;
        let key = SubscriptionRow::key(SubscriptionId::from_onboarding(saga.onboarding_id));
        if let Some(outcome) = outcome_for_existing(self.billing.get(&key).await?) {
            return self.complete(outcome, session, lock, now).await;
        }
        match self.pay(command, session, lock).await? {
            PaymentResult::Paid { customer: customer_id, subscription } => {
                let provider_subscription_id = subscription.to_string();
                let event = SubscriptionInitialized {
                    site_id,
                    plan,
                    provider_subscription_id: provider_subscription_id.clone(),
                };
                let state = Subscription::Active { plan, customer_id, provider_subscription_id };
                self.commit(saga, session, lock, state, event, now).await
            }
            PaymentResult::Refused(refusal) => {
                // The customer is not needed after a refusal.
                Self::clean_up(session, lock).await?;
                let event = SubscriptionFailed {
                    site_id,
                    plan,
                    error: refusal.kind().name().to_owned(),
                    message: refusal.message().to_owned(),
                };
                let state = Subscription::Failed { plan, refusal };
                self.commit(saga, session, lock, state, event, now).await
            }
        }
    }

    /// Opens the paid subscription at the provider. Continues from the checkpoint of an earlier run.
    async fn pay(
        &self,
        command: &Command,
        session: &mut Session<'_>,
        lock: &mut Lock<Checkpoint>,
    ) -> Result<PaymentResult, BillingError> {
        let Ok(method) = stripe::PaymentMethodId::try_from(command.payment_method.0.clone()) else {
            let message = "paymentMethod is not a valid id of the payment provider".to_owned();
            return Ok(PaymentResult::Refused(Refusal::InvalidInput { message }));
        };
        let id = SubscriptionId::from_onboarding(command.saga.onboarding_id);
        let stripe = session.client().await?;
        let paid = self.pay_with(stripe, &method, command, lock).await;
        let error = match paid {
            Ok(paid) => return Ok(paid),
            Err(PayError::Billing(error)) => return Err(error),
            Err(PayError::Stripe(error)) => error,
        };
        session.forget_refused_key(&error).await;
        match error {
            StripeError::Declined { message, .. } => {
                Ok(PaymentResult::Refused(Refusal::CardDeclined { message }))
            }
            StripeError::UnknownPaymentMethod { message } => {
                Ok(PaymentResult::Refused(Refusal::InvalidInput { message }))
            }
            // A wrong payment method is the operator's input, so it is a refusal. All other parameters come from the
            // saga or from the configuration, so any other rejection is an error.
            StripeError::Rejected { status: 400 | 404, code, message }
                if is_about_payment_method(&message, &method) =>
            {
                tracing::info!(?code, "the provider rejected the payment method");
                Ok(PaymentResult::Refused(Refusal::InvalidInput { message }))
            }
            StripeError::IdempotencyKeySpent(_) => {
                let mut checkpoint = lock.checkpoint.clone().unwrap_or_default();
                checkpoint.generation += 1;
                self.save_checkpoint(id, lock, checkpoint).await?;
                Err(error.into())
            }
            error => Err(error.into()),
        }
    }

    /// Makes the calls of [`Self::pay`].
    async fn pay_with(
        &self,
        stripe: &mut Stripe,
        method: &stripe::PaymentMethodId,
        command: &Command,
        lock: &mut Lock<Checkpoint>,
    ) -> Result<PaymentResult, PayError> {
        let Checkpoint { customer_id, generation } = lock.checkpoint.clone().unwrap_or_default();
        let onboarding = command.saga.onboarding_id;
        let id = SubscriptionId::from_onboarding(onboarding);
        let key = |operation: &str| {
            Uuid::new_v5(&onboarding.uuid(), format!("stripe/{operation}/{generation}").as_bytes())
        };
        let (onboarding, site) = (onboarding.to_string(), command.saga.site_id.to_string());
        let metadata = [("onboardingId", onboarding.as_str()), ("siteId", site.as_str())];

        let resumed = customer_id.is_some();
        let customer = if let Some(customer) = customer_id {
            customer
        } else {
            let customer =
                stripe.create_customer(&command.name, &metadata, key("customer")).await?;
            self.save_checkpoint(
                id,
                lock,
                Checkpoint { customer_id: Some(customer.clone()), generation },
            )
            .await?;
            customer
        };
        // An earlier run may have created the subscription without receiving the response.
        if resumed {
            for existing in stripe.customer_subscriptions(&customer).await? {
                if existing.is_paid() {
                    return Ok(PaymentResult::Paid { customer, subscription: existing.id });
                }
                stripe.cancel_subscription(&existing.id).await?;
            }
        }
        let method = stripe.attach_payment_method(method, &customer, key("attach")).await?;
        stripe.set_default_payment_method(&customer, &method, key("default")).await?;
        let price = self.provider.price(command.plan);
        let subscription =
            stripe.create_subscription(&customer, price, &metadata, key("subscription")).await?;
        Ok(PaymentResult::Paid { customer, subscription })
    }

    /// Stores the checkpoint. Returns [`BillingError::Busy`] if another run has taken the lock.
    async fn save_checkpoint(
        &self,
        id: SubscriptionId,
        lock: &mut Lock<Checkpoint>,
        checkpoint: Checkpoint,
    ) -> Result<(), BillingError> {
        match self.idempotency.checkpoint(lock, &checkpoint).await? {
            Commit::Done => {
                lock.checkpoint = Some(checkpoint);
                Ok(())
            }
            Commit::Refused(_) => Err(BillingError::Busy(id)),
        }
    }

    /// Commits the row, the event and the completed idempotency record in one transaction. If the undo committed first,
    /// cancels the payment.
    async fn commit<D: Event>(
        &self,
        saga: SagaContext,
        session: &mut Session<'_>,
        lock: &Lock<Checkpoint>,
        state: Subscription,
        event: D,
        now: Timestamp,
    ) -> Result<Outcome, BillingError> {
        let id = SubscriptionId::from_onboarding(saga.onboarding_id);
        let key = SubscriptionRow::key(id);
        let outcome = Outcome::from(state.clone());
        let row = SubscriptionRow { saga, state, sequence: 1, at: now };
        let transaction = Transaction::on(&self.billing)
            .create(&self.billing, &key, &row)
            .event(&self.outbox, NewEvent::in_saga(saga, id, 1, now, event));
        let transaction = self.idempotency.complete(transaction, lock, &outcome, now)?;
        let refused = match transaction.commit().await? {
            Commit::Done => return Ok(outcome),
            Commit::Refused(refused) => refused,
        };
        if refused.contains(lock.key()) {
            return Err(BillingError::Busy(id));
        }
        match outcome_for_existing(refused.row(&key)?) {
            Some(existing) => self.complete(existing, session, lock, now).await,
            None => Err(BillingError::Busy(id)),
        }
    }

    /// Stores the outcome of the existing row in the idempotency record. If the undo committed first, cleans up what
    /// this run or an earlier one created at the provider.
    async fn complete(
        &self,
        outcome: Outcome,
        session: &mut Session<'_>,
        lock: &Lock<Checkpoint>,
        now: Timestamp,
    ) -> Result<Outcome, BillingError> {
        if outcome == Outcome::Superseded {
            Self::clean_up(session, lock).await?;
        }
        let transaction = Transaction::on(&self.billing);
        let committed = self.idempotency.complete(transaction, lock, &outcome, now)?.commit();
        if let Commit::Refused(_) = committed.await? {
            tracing::info!("another run took over the lock and stores the same outcome");
        }
        Ok(outcome)
    }

    async fn clean_up(
        session: &mut Session<'_>,
        lock: &Lock<Checkpoint>,
    ) -> Result<(), BillingError> {
        match lock.checkpoint.as_ref().and_then(|checkpoint| checkpoint.customer_id.as_ref()) {
            Some(customer) => session.clean_up(customer).await,
            None => Ok(()),
        }
    }
}

/// An error of [`InitializeSubscription::pay_with`]. A Stripe error may be a refusal, which is not an error of the
/// step.
enum PayError {
    Stripe(StripeError),
    Billing(BillingError),
}

impl From<StripeError> for PayError {
    fn from(error: StripeError) -> Self {
        Self::Stripe(error)
    }
}

impl From<BillingError> for PayError {
    fn from(error: BillingError) -> Self {
        Self::Billing(error)
    }
}

fn is_about_payment_method(message: &str, method: &stripe::PaymentMethodId) -> bool {
    message.contains(method.as_str())
        || message.contains(stripe::HIDDEN_PAYMENT_METHOD)
        || message.to_ascii_lowercase().contains("payment")
}

/// Hashes a command. The hash distinguishes a redelivered command from a different one for the same onboarding.
fn command_hash(command: &Command) -> String {
    let text = serde_json::to_vec(command).unwrap_or_default();
    Uuid::new_v5(&command.saga.onboarding_id.uuid(), &text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_is_about_the_method_if_it_names_it_or_mentions_payment() {
        let method = stripe::PaymentMethodId::try_from("other-1".to_owned()).expect("an id");
        for (message, about) in [
            ("No such PaymentMethod: 'pm_2'", true),
            ("'pm_***' belongs to somebody else", true),
            ("'other-1' belongs to somebody else", true),
            ("No such price: 'price_2'", false),
        ] {
            assert_eq!(is_about_payment_method(message, &method), about, "{message}");
        }
    }
}
