//! Starts the saga after the event `SiteCreated`, once per site.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    ContextWithSensors, Envelope, IdMismatch, OnboardingId, PaymentMethodId, Plan, Timestamp,
    events::SiteCreated,
};
use lambda::Step;
use machines::{StartResult, StateMachine};
use serde::Serialize;

use crate::OnboardingError;

/// The dependencies of the function `start-onboarding`.
#[derive(Debug)]
pub struct StartOnboarding {
    /// The state machine `site-onboarding`.
    pub onboarding: StateMachine,
}

/// The input of the saga: only the data that its steps need.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// The ids of the saga and the sensors of the site.
    #[serde(flatten)]
    pub context: ContextWithSensors,
    /// The name of the site, for the payment provider's records.
    pub name: String,
    /// The subscription plan.
    pub plan: Plan,
    /// The payment method.
    pub payment_method: PaymentMethodId,
}

impl TryFrom<Envelope<SiteCreated>> for Input {
    type Error = IdMismatch;

    fn try_from(event: Envelope<SiteCreated>) -> Result<Self, IdMismatch> {
        let saga = event.saga()?;
        let data = event.data;
        saga.check_onboarding(data.onboarding_id)?;
        Ok(Self {
            context: ContextWithSensors::new(saga, data.sensors)?,
            name: data.name,
            plan: data.plan,
            payment_method: data.payment_method,
        })
    }
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, PartialEq, Serialize)]
pub enum Reply {
    /// The saga was started.
    Started,
    /// The saga was started before.
    Already,
}

impl Step for StartOnboarding {
    type Command = EventBridgeEvent<Envelope<SiteCreated>>;
    type Reply = Reply;
    type Error = OnboardingError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        command.detail.metadata.correlation_id
    }

    async fn run(&self, command: Self::Command, _: Timestamp) -> Result<Reply, OnboardingError> {
        let input = Input::try_from(command.detail)
            .map_err(|mismatch| OnboardingError::Invalid(mismatch.into()))?;
        let json = serde_json::to_string(&input)
            .map_err(|error| OnboardingError::Input(error.to_string()))?;
        let name = input.context.saga.onboarding_id.to_string();
        Ok(match self.onboarding.start(&name, json).await? {
            StartResult::Started => Reply::Started,
            StartResult::AlreadyStarted => Reply::Already,
        })
    }
}
