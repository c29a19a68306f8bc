//! `SiteRegistrationRequested` from another system: registers a site, as `POST /sites` does.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{OnboardingId, SiteId, Timestamp, inbound::SiteRegistrationRequested};
use lambda::{Step, http::FieldError};
use serde::Serialize;

use crate::{SitesError, registration::Registrar};

/// What the step needs.
#[derive(Debug)]
pub struct ImportSite(pub Registrar);

/// What it answers; seen only in the log.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The site, the same for every delivery of the event.
    pub site_id: SiteId,
}

impl Step for ImportSite {
    type Command = EventBridgeEvent<SiteRegistrationRequested>;
    type Reply = Reply;
    type Error = SitesError;

    fn correlation(command: &Self::Command) -> Option<OnboardingId> {
        let site = SiteId::registered(&command.source, &command.detail.registration_id);
        Some(OnboardingId::of(site))
    }

    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, SitesError> {
        let SiteRegistrationRequested { registration_id, site } = command.detail;
        if registration_id.is_empty() || registration_id.len() > 128 {
            return Err(SitesError::Invalid(vec![FieldError {
                field: "detail.registrationId".to_owned(),
                message: "give 1 to 128 characters, unique within the event's source".to_owned(),
            }]));
        }
        let causation = command.id.as_deref().and_then(|id| id.parse().ok());
        let registered =
            self.0.register(&command.source, &registration_id, site, causation, now).await?;
        Ok(Reply { site_id: registered.site_id })
    }
}
