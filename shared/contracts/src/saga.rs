//! What every step of a saga is told, besides what it needs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{OnboardingId, SiteId};

/// Which saga a step belongs to. All that an undo needs: every other id is derived from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Saga {
    /// The onboarding: name of its execution, correlation id of its events.
    pub onboarding_id: OnboardingId,
    /// The site.
    pub site_id: SiteId,
    /// The event that began the saga; absent where a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Uuid>,
}
