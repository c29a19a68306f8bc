//! `SiteCreated`: starts the saga, once a site.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    Envelope, OnboardingId, PaymentMethodId, Plan, Saga, Sensor, Timestamp, events::SiteCreated,
};
use lambda::Step;
use machines::{Machine, Started};
use serde::Serialize;

use crate::OnboardingError;

/// What the step needs.
#[derive(Debug)]
pub struct StartOnboarding {
    /// The state machine `site-onboarding`.
    pub onboarding: Machine,
}

/// The saga's input: what its steps need, and nothing else of the site.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Which saga it is.
    #[serde(flatten)]
    pub saga: Saga,
    /// The site's name, for the payment provider's books.
    pub name: String,
    /// What the operator subscribes to.
    pub plan: Plan,
    /// How the operator pays.
    pub payment_method: PaymentMethodId,
    /// What the site will measure.
    pub sensors: Vec<Sensor>,
}

impl From<Envelope<SiteCreated>> for Input {
    fn from(event: Envelope<SiteCreated>) -> Self {
        let Envelope { metadata, data } = event;
        Self {
            saga: Saga {
                onboarding_id: data.onboarding_id,
                site_id: data.site_id,
                causation_id: Some(metadata.event_id.uuid()),
            },
            name: data.name,
            plan: data.plan,
            payment_method: data.payment_method,
            sensors: data.sensors,
        }
    }
}

/// What it answers; seen only in the log.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The saga runs.
    Started,
    /// It was started before.
    Already,
}

impl Step for StartOnboarding {
    type Command = EventBridgeEvent<Envelope<SiteCreated>>;
    type Reply = Reply;
    type Error = OnboardingError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        Some(command.detail.metadata.correlation_id)
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, OnboardingError> {
        let input = Input::from(command.detail);
        let json = serde_json::to_string(&input)
            .map_err(|error| OnboardingError::Input(error.to_string()))?;
        let name = input.saga.onboarding_id.to_string();
        Ok(match self.onboarding.start(&name, json).await? {
            Started::Now => Reply::Started,
            Started::Before => Reply::Already,
        })
    }
}
