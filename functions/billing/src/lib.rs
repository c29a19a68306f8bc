//! Billing: a site's subscription at the payment provider, Stripe.
//!
//! Owns the billing table, key `id`:
//!
//! - `subscription#<uuid>`: a subscription ([`SubscriptionRow`]);
//! - `idempotency#initialize-subscription#<onboarding>`: the record of the one effect that no
//!   transaction can hold;
//! - `circuit#provider`: the state of the breaker before the provider ([`circuit`]);
//! - `reconciliation#provider`: how the rows compare to the provider ([`reconciliation`]).
//!
//! Emits the events of the entity `subscription`. A cancelled subscription stays as a tombstone: it
//! fences off an initialization that comes late. Commands come over queues, and are run only if the
//! state machine sent them ([`proof`]).
//!
//! How a late or doubled initialization can't leave a paid subscription behind: the customer's id is
//! noted in the idempotency record before a subscription is made for it, so whoever comes next
//! (a redelivery, or the undo) finds everything at the provider by that customer.

pub mod cancel_subscription;
pub mod circuit;
pub mod commands;
pub mod initialize_subscription;
pub mod proof;
pub mod provider;
pub mod reconcile_subscriptions;
pub mod reconciliation;
pub mod stripe;

use contracts::{OnboardingId, Plan, Saga, SubscriptionId, Timestamp};
use fault::{ErrorKind, Fault};
use serde::{Deserialize, Serialize};
use store::{Key, StoreError};

use crate::stripe::{CustomerId, StripeError};

/// The subscription of one onboarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionRow {
    /// Whose it is.
    #[serde(flatten)]
    pub saga: Saga,
    /// Where it stands.
    #[serde(flatten)]
    pub state: Subscription,
    /// Its events so far.
    pub sequence: u64,
    /// When it came to this.
    pub at: Timestamp,
}

impl SubscriptionRow {
    /// Its key.
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
        /// For this.
        plan: Plan,
        /// Stripe's id of the operator, as this site's payer.
        customer_id: CustomerId,
        /// Stripe's id of the subscription.
        provider_subscription_id: String,
    },
    /// The provider refused; nothing is left there.
    Failed {
        /// What was asked for.
        plan: Plan,
        /// Why.
        refusal: Refusal,
    },
    /// Being undone: no initialization can commit any more, the provider still has to hear of it.
    Cancelling {
        /// Whose subscriptions have to go, as far as it is known.
        customer_id: Option<CustomerId>,
        /// The subscription that was paid for.
        provider_subscription_id: Option<String>,
    },
    /// Tombstone: nothing is paid for, nor ever will be.
    Cancelled,
}

impl Subscription {
    /// The name in the row.
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

/// The provider's final no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "error")]
pub enum Refusal {
    /// The card, or its bank.
    CardDeclined {
        /// The provider's words.
        message: String,
    },
    /// The payment method is none.
    InvalidInput {
        /// The provider's words.
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

/// The idempotency record's id.
fn record_id(onboarding: OnboardingId) -> String {
    format!("initialize-subscription#{onboarding}")
}

/// How far an initialization came at the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// The customer that was made.
    pub customer_id: Option<CustomerId>,
    /// Raised when the provider has stored a failure under this generation's idempotency keys.
    #[serde(default)]
    pub generation: u32,
}

/// Everything that can go wrong here.
#[derive(Debug, thiserror::Error)]
pub enum BillingError {
    /// The provider's final no.
    #[error("{}", .0.message())]
    Refused(Refusal),
    /// The subscription was cancelled before it was initialized.
    #[error("subscription {0} was cancelled before it was initialized")]
    Superseded(SubscriptionId),
    /// Another run is at it, or changed the row meanwhile.
    #[error("subscription {0} is being worked on by another run")]
    Busy(SubscriptionId),
    /// The provider can't be reached, or can't be used until its configuration is corrected.
    #[error("the payment provider is unavailable: {0}")]
    ProviderUnavailable(String),
    /// The provider's API key can't be read.
    #[error("the payment provider is unavailable: {0}")]
    KeyUnreadable(String),
    /// A comparison with the provider did not end in time.
    #[error("the comparison with the payment provider took more than {0:?}")]
    TimeOut(std::time::Duration),
    /// The provider does not understand us.
    #[error("the payment provider refused the call: {0}")]
    Provider(StripeError),
    /// The table.
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
            // A missing or revoked key is transient: an operator stores the right one, and a retry succeeds.
            StripeError::Unavailable(_)
            | StripeError::KeySpent(_)
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
            | Self::TimeOut(_) => ErrorKind::Transient,
            Self::Provider(_) => ErrorKind::Internal,
            Self::Store(error) => error.into(),
        }
    }
}
