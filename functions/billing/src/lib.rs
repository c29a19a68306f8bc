//! Manages each site's subscription at the payment provider, Stripe.
//!
//! This crate owns the billing table. Its key is `id`:
//!
//! - `subscription#<uuid>`: a subscription ([`SubscriptionRow`]);
//! - `idempotency#initialize-subscription#<onboarding>`: the idempotency record of an initialization. It is needed
//!   because the calls to the provider can't be part of a transaction;
//! - `circuit#provider`: the state of the circuit breaker for the provider ([`circuit`]);
//! - `reconciliation#provider`: the last comparison of the rows with the provider ([`reconciliation`]).
//!
//! The crate emits the events of the entity `subscription`. A cancelled subscription stays as a tombstone, so that
//! a late initialization can't commit. Commands arrive over queues. They run only if the state machine sent
//! them ([`proof`]).
//!
//! A late or duplicate initialization can't leave a paid subscription behind. It stores the customer's id in the
//! idempotency record before it creates a subscription for that customer. A redelivery or the undo can therefore find
//! everything at the provider by that id.

pub mod cancel_subscription;
pub mod circuit;
pub mod commands;
pub mod initialize_subscription;
pub mod proof;
pub mod provider;
pub mod reconcile_subscriptions;
pub mod reconciliation;
pub mod stripe;

use contracts::{OnboardingId, Plan, SagaContext, SubscriptionId, Timestamp};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

use crate::stripe::{CustomerId, StripeError};

/// The subscription of one onboarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionRow {
    /// The site and the onboarding that the subscription belongs to.
    #[serde(flatten)]
    pub saga: SagaContext,
    /// The subscription's state.
    #[serde(flatten)]
    pub state: Subscription,
    /// The number of events that the subscription has emitted.
    pub sequence: u64,
    /// When the row was last written.
    pub at: Timestamp,
}

impl SubscriptionRow {
    /// Returns the key of a subscription's row.
    #[must_use]
    pub fn key(subscription: SubscriptionId) -> Key {
        Key::id(format!("subscription#{subscription}"))
    }
}

/// A subscription's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "SCREAMING_SNAKE_CASE", rename_all_fields = "camelCase")]
pub enum Subscription {
    /// The operator pays.
    Active {
        /// The plan that the operator pays for.
        plan: Plan,
        /// Stripe's id of the customer. Each onboarding has its own customer.
        customer_id: CustomerId,
        /// Stripe's id of the subscription.
        provider_subscription_id: String,
    },
    /// The provider refused the payment. Nothing is left at the provider.
    Failed {
        /// The requested plan.
        plan: Plan,
        /// Why the provider refused.
        refusal: Refusal,
    },
    /// The undo has begun. No initialization can commit any more. The clean-up at the provider has not finished.
    Cancelling {
        /// The customer to delete, if the undo knew one when it wrote this row.
        customer_id: Option<CustomerId>,
        /// The subscription that was paid for, if there was one.
        provider_subscription_id: Option<String>,
    },
    /// Tombstone: nothing is paid for, and no initialization can commit.
    Cancelled,
}

impl Subscription {
    /// Returns the value of `status` in the row.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Active { .. } => "ACTIVE",
            Self::Failed { .. } => "FAILED",
            Self::Cancelling { .. } => "CANCELLING",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A final refusal by the provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error")]
pub enum Refusal {
    /// The card or its bank declined the payment.
    CardDeclined {
        /// The provider's message.
        message: String,
    },
    /// The payment method does not exist or can't be used.
    InvalidInput {
        /// The provider's message.
        message: String,
    },
}

impl Refusal {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::CardDeclined { .. } => ErrorKind::CardDeclined,
            Self::InvalidInput { .. } => ErrorKind::InvalidInput,
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::CardDeclined { message } | Self::InvalidInput { message } => message,
        }
    }
}

/// Returns the id of an initialization's idempotency record.
fn record_id(onboarding: OnboardingId) -> String {
    format!("initialize-subscription#{onboarding}")
}

/// The progress of an initialization at the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The customer, once it was created.
    pub customer_id: Option<CustomerId>,
    /// Part of the idempotency keys sent to the provider. It is incremented when the provider has stored a failure
    /// under the current keys.
    #[serde(default)]
    pub generation: u32,
}

/// An error of a billing step.
#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    /// The provider refused the payment. A retry would fail too.
    #[error("{}", .0.message())]
    Refused(Refusal),
    /// The subscription is already cancelled, so it can't be initialized.
    #[error("subscription {0} is already cancelled")]
    Superseded(SubscriptionId),
    /// Another run holds the lock, or changed the row since it was read.
    #[error("another run is processing subscription {0}")]
    Busy(SubscriptionId),
    /// The provider can't be reached, or can't be used until its configuration is corrected.
    #[error("the payment provider is unavailable: {0}")]
    ProviderUnavailable(String),
    /// The provider's API key can't be read.
    #[error("the payment provider is unavailable: {0}")]
    KeyUnreadable(String),
    /// A comparison with the provider took too long.
    #[error("the comparison with the payment provider took more than {0:?}")]
    Timeout(std::time::Duration),
    /// The provider rejected the request, or the client's configuration is wrong.
    #[error("the call to the payment provider can't succeed: {0}")]
    Provider(StripeError),
    /// A read or write of the table failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<StripeError> for BillingError {
    fn from(error: StripeError) -> Self {
        match error {
            StripeError::Declined { message, .. } => {
                Self::Refused(Refusal::CardDeclined { message })
            }
            StripeError::UnknownPaymentMethod { message } => {
                Self::Refused(Refusal::InvalidInput { message })
            }
            // A missing or revoked key is transient: an engineer on call stores the right one, and a retry succeeds.
            StripeError::Unavailable(_)
            | StripeError::IdempotencyKeySpent(_)
            | StripeError::Unauthorized(_)
            | StripeError::Unreadable(_) => Self::ProviderUnavailable(error.to_string()),
            StripeError::Rejected { .. } | StripeError::InvalidId | StripeError::Config(_) => {
                Self::Provider(error)
            }
        }
    }
}

impl Fault for BillingError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(refusal) => refusal.kind(),
            Self::Superseded(_) => ErrorKind::Superseded,
            Self::Busy(_)
            | Self::ProviderUnavailable(_)
            | Self::KeyUnreadable(_)
            | Self::Timeout(_) => ErrorKind::Transient,
            Self::Provider(_) => ErrorKind::Internal,
            Self::Store(error) => error.into(),
        }
    }
}
