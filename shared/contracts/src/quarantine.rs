//! The message about a stream's record that its consumer can never process.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{SensorId, SiteId};

/// A message of a failure queue: a stream's record that a function quarantined. `R` is the record: what the
/// function has, or raw JSON for the reader.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Quarantined<'a, R> {
    /// The function that processes the record when it is replayed, such as `store-readings`.
    #[serde(borrow)]
    pub source: Cow<'a, str>,
    /// The error's stable name.
    #[serde(borrow)]
    pub error: Cow<'a, str>,
    /// Why the record can't be processed, for a human.
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// The sensor that the error is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_id: Option<SensorId>,
    /// The site at which the register has that sensor. The site in the record is only what its sender
    /// claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sensor_site_id: Option<SiteId>,
    /// The record as it came, its position in the stream included.
    pub record: R,
}
