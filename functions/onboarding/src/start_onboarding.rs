//! `SiteCreated`: starts the saga, once a site.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_sfn::{
    Client,
    error::{DisplayErrorContext, SdkError},
};
use contracts::{
    Envelope, OnboardingId, PaymentMethodId, Plan, Saga, Sensor, Timestamp, events::SiteCreated,
};
use lambda::Step;
use serde::Serialize;

use crate::OnboardingError;

/// What the step needs.
#[derive(Debug)]
pub struct StartOnboarding {
    /// Step Functions.
    pub machines: Client,
    /// ARN of the state machine `site-onboarding`.
    pub onboarding: String,
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
            .map_err(|error| OnboardingError::Internal(error.to_string()))?;
        // The name makes the second start of the same saga a no-op, for 90 days after its end.
        let started = self
            .machines
            .start_execution()
            .state_machine_arn(&self.onboarding)
            .name(input.saga.onboarding_id.to_string())
            .input(json)
            .send()
            .await;
        match started {
            Ok(_) => Ok(Reply::Started),
            Err(error) => {
                let text = DisplayErrorContext(&error).to_string();
                match &error {
                    SdkError::ServiceError(service) => {
                        if service.err().is_execution_already_exists() {
                            Ok(Reply::Already)
                        } else if service.raw().status().as_u16() >= 500
                            || matches!(
                                service.err().meta().code(),
                                Some("ThrottlingException" | "ExecutionLimitExceeded")
                            )
                        {
                            Err(OnboardingError::Transient(text))
                        } else {
                            Err(OnboardingError::Internal(text))
                        }
                    }
                    SdkError::ConstructionFailure(_) => Err(OnboardingError::Internal(text)),
                    _ => Err(OnboardingError::Transient(text)),
                }
            }
        }
    }
}
