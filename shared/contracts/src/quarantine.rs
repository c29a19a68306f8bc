//! The message about a stream record that its consumer set aside: in quarantine, or on hold.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{SensorId, SiteId};

/// A message of a failure queue about a quarantined stream record, or of the hold queue about a record on hold. `R` is
/// the record: the writer's type, or raw JSON for the reader.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined<'a, R> {
    /// The function that processes the record when it is replayed, such as `store-readings`.
    #[serde(borrow)]
    pub source: Cow<'a, str>,
    /// The error's stable name.
    #[serde(borrow)]
    pub error: Cow<'a, str>,
    /// Why the record can't be processed, for people.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// The sensor that the error is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_id: Option<SensorId>,
    /// The site to which the sensor register assigns the sensor. The site in the record is only the sender's claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_site_id: Option<SiteId>,
    /// The record as Lambda delivered it, with its position in the stream.
    pub record: R,
}
