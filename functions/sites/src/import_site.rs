//! Registers a site from another system's event `SiteRegistrationRequested`, as `POST /sites` does.

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    OnboardingId, SiteId, SourceOperators, Timestamp,
    inbound::SiteRegistrationRequested,
    input::{self, FieldError},
};
use lambda::Step;
use serde::Serialize;
use serde_json::value::RawValue;
use tracing::Span;

use crate::{SitesError, registration::Registrar};

/// The dependencies of the function `import-site`.
#[derive(Debug)]
pub struct ImportSite {
    /// Registers the sites.
    pub registrar: Registrar,
    /// The operators of the sources.
    pub operators: SourceOperators,
}

/// The result of the invocation. The call is asynchronous, so Lambda discards it; only tests read it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// The site's id. It is the same for every delivery of the event.
    pub site_id: SiteId,
}

impl Step for ImportSite {
    type Command = EventBridgeEvent<Box<RawValue>>;
    type Reply = Reply;
    type Error = SitesError;

    /// The saga's id depends on the operator of the source, which the command does not contain.
    fn correlation(_: &Self::Command) -> Option<OnboardingId> {
        None
    }

    async fn run(&self, command: Self::Command, now: Timestamp) -> Result<Reply, SitesError> {
        let SiteRegistrationRequested { registration_id, site } =
            parse(&command.detail).map_err(SitesError::Invalid)?;
        let causation = command.id.as_deref().and_then(|id| id.parse().ok());
        let operator = self.operators.operator(&command.source);
        let site_id = SiteId::registered(operator, &command.source, &registration_id);
        let correlation = OnboardingId::from_site(site_id);
        Span::current().record("correlationId", tracing::field::display(correlation));
        let registered = self
            .registrar
            .register(operator, &command.source, &registration_id, site, causation, now)
            .await?;
        Ok(Reply { site_id: registered.site_id })
    }
}

fn parse(detail: &RawValue) -> Result<SiteRegistrationRequested, Vec<FieldError>> {
    input::read(detail.get())
        .map_err(|errors| errors.into_iter().map(|error| error.within("detail")).collect())
}
