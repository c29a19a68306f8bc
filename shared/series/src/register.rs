//! The register of sensors: the row `SENSOR` of each sensor in the readings table.
//!
//! telemetry writes the rows. Other services only read which site a sensor belongs to, because a sensor's id does not
//! tell it.

use contracts::{SensorId, SiteId};
use serde::Deserialize;
use store::{Key, StoreError, Table};

/// Returns the key of the sensor's row.
#[must_use]
pub fn key(sensor: SensorId) -> Key {
    Key::pair(("sensorId", sensor.to_string()), ("row", "SENSOR"))
}

/// Returns the site of a sensor. Returns `None` if no event of the sensor has arrived yet.
pub async fn site_of(readings: &Table, sensor: SensorId) -> Result<Option<SiteId>, StoreError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Row {
        site_id: SiteId,
    }

    let row: Option<Row> = readings.get(&key(sensor)).await?;
    Ok(row.map(|row| row.site_id))
}
