//! The register of sensors: the row `SENSOR` of each sensor in the readings table.
//!
//! The service telemetry writes the rows. Other services only read which site a sensor belongs to, because the id of a
//! sensor does not contain its site.

use contracts::{OperatorId, SensorId, SiteId};
use serde::Deserialize;
use store::{Key, StoreError, Table};

/// Returns the key of the sensor's row.
#[must_use]
pub fn key(sensor: SensorId) -> Key {
    Key::pair(("sensorId", sensor.to_string()), ("row", "SENSOR"))
}

/// Returns the site of an operator's sensor. Returns `None` if no event of the sensor has arrived yet, and for a sensor of
/// another operator.
pub async fn site_of(
    readings: &Table,
    operator: OperatorId,
    sensor: SensorId,
) -> Result<Option<SiteId>, StoreError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Row {
        site_id: SiteId,
        // Rows of releases before there were operators have none.
        #[serde(default)]
        operator_id: OperatorId,
    }

    let row: Option<Row> = readings.get(&key(sensor)).await?;
    Ok(row.filter(|row| row.operator_id == operator).map(|row| row.site_id))
}
