//! The model of the alerts: which changes a sensor's readings cause if each is judged once, in the order of time.

use contracts::{Sensor, SensorId, Timestamp, events::Limit};
use serde_json::json;
use store::EventRow;

/// The deadband in the metric's unit. Limits narrower than those in the tests would reduce it.
const DEADBAND: f64 = 0.5;

/// A change of a sensor's state, as an event reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    pub at: Timestamp,
    pub value: f64,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    Breached(Limit, f64),
    BackToNormal(Timestamp),
}

/// The expected alerts of one sensor's readings.
#[derive(Clone, Debug, Default)]
pub struct ExpectedAlerts {
    breached: Option<(Limit, Timestamp)>,
    pub alerts: Vec<Alert>,
}

impl ExpectedAlerts {
    pub fn add_reading(&mut self, sensor: &Sensor, at: Timestamp, value: f64) {
        let low = sensor.min.filter(|min| value < *min).map(|min| (Limit::Min, min));
        let high = sensor.max.filter(|max| value > *max).map(|max| (Limit::Max, max));
        let change = match (self.breached, low.or(high)) {
            (Some((limit, _)), Some((breached_limit, _))) if limit == breached_limit => return,
            (_, Some((limit, threshold))) => {
                self.breached = Some((limit, at));
                Change::Breached(limit, threshold)
            }
            (Some((_, breached_at)), None) => {
                let low = sensor.min.is_some_and(|min| value < min + DEADBAND);
                let high = sensor.max.is_some_and(|max| value > max - DEADBAND);
                if low || high {
                    return;
                }
                self.breached = None;
                Change::BackToNormal(breached_at)
            }
            (None, None) => return,
        };
        self.alerts.push(Alert { at, value, change });
    }
}

/// Returns the sensor and the change in an event, and `None` for other events.
pub fn alert_in(row: &EventRow) -> Option<(SensorId, Alert)> {
    let data = row.envelope().expect("an envelope").data;
    let time = |name: &str| data[name].as_str().expect("a time").parse().expect("a time");
    let change = match row.kind.as_str() {
        "ReadingBreachedThreshold" => {
            let limit = serde_json::from_value(data["limit"].clone()).expect("a limit");
            Change::Breached(limit, data["threshold"].as_f64().expect("a number"))
        }
        "ReadingBackToNormal" => Change::BackToNormal(time("breachedAt")),
        _ => return None,
    };
    let sensor = data["sensorId"].as_str().expect("an id").parse().expect("an id");
    let value = data["value"].as_f64().expect("a number");
    assert_eq!((&data["metric"], &data["unit"]), (&json!("air_temperature"), &json!("Cel")));
    Some((sensor, Alert { at: time("at"), value, change }))
}
