//! Registers a site from another system's event `SiteRegistrationRequested`, as `POST /sites` does.

use std::{collections::HashMap, str::FromStr};

use aws_lambda_events::eventbridge::EventBridgeEvent;
use contracts::{
    OnboardingId, OperatorId, SiteId, Timestamp,
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

/// The operators of EventBridge sources. A source without an entry belongs to the default operator.
///
/// Its text form is `source=operatorId`, several of them separated by commas.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SourceOperators(HashMap<String, OperatorId>);

impl SourceOperators {
    /// Returns the operator that owns the sites of a source.
    #[must_use]
    pub fn operator(&self, source: &str) -> OperatorId {
        self.0.get(source).copied().unwrap_or_default()
    }
}

impl FromStr for SourceOperators {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut operators = HashMap::new();
        for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let parsed = pair.split_once('=').and_then(|(source, operator)| {
                Some((source.trim(), operator.trim().parse().ok()?)).filter(|it| !it.0.is_empty())
            });
            let (source, operator) =
                parsed.ok_or_else(|| format!("has {pair:?}; give <source>=<operatorId>"))?;
            if operators.insert(source.to_owned(), operator).is_some() {
                return Err(format!("has the source {source:?} twice"));
            }
        }
        Ok(Self(operators))
    }
}

/// The result of the invocation. It is only logged.
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
