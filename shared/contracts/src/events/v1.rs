//! Earlier versions of event types, which are still published.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{EntityType, Event, SiteId, inbound::MAX_SENSORS};

/// Alerting on the limits of the site's sensors was configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlertingConfigured {
    /// The id of the site.
    pub site_id: SiteId,
    /// The number of sensors with limits.
    #[schemars(range(max = MAX_SENSORS))]
    pub rules: usize,
}

impl Event for AlertingConfigured {
    const TYPE: &'static str = super::AlertingConfigured::TYPE;
    const VERSION: u32 = 1;
    const ENTITY: EntityType = super::AlertingConfigured::ENTITY;
}

impl From<super::AlertingConfigured> for AlertingConfigured {
    fn from(event: super::AlertingConfigured) -> Self {
        Self { site_id: event.site_id, rules: event.limits.len() }
    }
}
