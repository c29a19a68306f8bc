//! Registering a site: the one way in that `create-site` and `import-site` share.

use contracts::{
    OnboardingId, Saga, Sensor, SensorId, SiteId, Timestamp,
    events::SiteCreated,
    inbound::{SensorRequest, SiteRegistration},
};
use lambda::http::FieldError;
use sha2::{Digest, Sha256};
use store::{Commit, NewEvent, Outbox, Table, Transaction};
use uuid::Uuid;

use crate::{SiteRow, SitesError, Status};

/// A site has at most so many sensors; a larger station registers as several sites.
pub const MOST_SENSORS: usize = 100;

/// What registering needs.
#[derive(Debug)]
pub struct Registrar {
    /// The sites table.
    pub sites: Table,
    /// Where `SiteCreated` goes.
    pub outbox: Outbox,
}

/// What the caller is told, the first time and every time after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The site.
    pub site_id: SiteId,
    /// Its saga.
    pub onboarding_id: OnboardingId,
}

impl Registrar {
    /// Registers the site that `channel` and `key` stand for. The row's own existence is the
    /// idempotency record: its id is derived from them, its hash tells whether the registration is
    /// the same.
    pub async fn register(
        &self,
        channel: &str,
        key: &str,
        registration: SiteRegistration,
        causation_id: Option<Uuid>,
        now: Timestamp,
    ) -> Result<Registered, SitesError> {
        let errors = check(&registration);
        if !errors.is_empty() {
            return Err(SitesError::Invalid(errors));
        }
        let site_id = SiteId::registered(channel, key);
        let saga = Saga::of_site(site_id, causation_id);
        let onboarding_id = saga.onboarding_id;
        let row = row(onboarding_id, &registration, now);
        let created = SiteCreated {
            site_id,
            onboarding_id,
            name: row.name.clone(),
            operator: row.operator.clone(),
            location: row.location,
            sensors: row.sensors.clone(),
            plan: row.plan,
            payment_method: registration.payment_method,
        };

        let commit = Transaction::on(&self.sites)
            .create(&self.sites, &SiteRow::key(site_id), &row)
            .event(&self.outbox, NewEvent::of(saga, site_id, row.sequence, now, created))
            .commit()
            .await?;
        let registered = Registered { site_id, onboarding_id };
        match commit {
            Commit::Done => Ok(registered),
            Commit::Refused(refused) => {
                let there: Option<SiteRow> = refused.row(&SiteRow::key(site_id))?;
                match there {
                    Some(there) if there.request_hash == row.request_hash => Ok(registered),
                    Some(_) => Err(SitesError::KeyReused(site_id)),
                    None => Err(SitesError::Busy(site_id)),
                }
            }
        }
    }
}

fn row(onboarding_id: OnboardingId, registration: &SiteRegistration, now: Timestamp) -> SiteRow {
    let sensors = registration.sensors.iter().enumerate();
    SiteRow {
        status: Status::Onboarding,
        name: registration.name.clone(),
        operator: registration.operator.clone(),
        location: registration.location,
        sensors: sensors.map(|(index, request)| sensor(onboarding_id, index, request)).collect(),
        plan: registration.plan,
        onboarding_id,
        request_hash: hash(registration),
        sequence: 1,
        created_at: now,
        activated_at: None,
        closed_at: None,
        failure: None,
    }
}

fn sensor(onboarding_id: OnboardingId, index: usize, request: &SensorRequest) -> Sensor {
    Sensor {
        sensor_id: SensorId::of(onboarding_id, index),
        metric: request.metric,
        unit: request.unit.clone(),
        min: request.min,
        max: request.max,
    }
}

/// Of what was meant, not of how it was written: white space and the fields' order don't count.
fn hash(registration: &SiteRegistration) -> String {
    let canonical = serde_json::to_vec(registration).unwrap_or_default();
    Sha256::digest(canonical).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Everything that is wrong with a registration, field by field.
#[must_use]
pub fn check(registration: &SiteRegistration) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut wrong = |field: &str, message: String| {
        errors.push(FieldError { field: field.to_owned(), message });
    };
    let texts = [
        ("name", &registration.name, 200),
        ("operator", &registration.operator, 200),
        ("paymentMethod", &registration.payment_method.0, 255),
    ];
    for (field, text, most) in texts {
        let length = text.trim().chars().count();
        if length == 0 || length > most {
            wrong(field, format!("has {length} characters; give 1 to {most}"));
        }
    }
    let location = registration.location;
    let ranges = [
        ("location.latitude", location.latitude, -90.0, 90.0, "degrees north"),
        ("location.longitude", location.longitude, -180.0, 180.0, "degrees east"),
        ("location.elevationM", location.elevation_m, -500.0, 9000.0, "metres above sea level"),
    ];
    for (field, value, least, most, unit) in ranges {
        if !(least..=most).contains(&value) {
            wrong(field, format!("is {value}; give {unit} from {least} to {most}"));
        }
    }
    let count = registration.sensors.len();
    if count == 0 || count > MOST_SENSORS {
        wrong(
            "sensors",
            format!(
                "has {count} entries; give 1 to {MOST_SENSORS}, and register a larger station as \
                 several sites"
            ),
        );
    }
    for (index, sensor) in registration.sensors.iter().take(MOST_SENSORS).enumerate() {
        let units = sensor.metric.units();
        if !units.contains(&sensor.unit.as_str()) {
            wrong(
                &format!("sensors[{index}].unit"),
                format!(
                    "is {:?}; {} is reported in {} (UCUM)",
                    sensor.unit,
                    sensor.metric,
                    units.join(" or ")
                ),
            );
        }
        if let (Some(min), Some(max)) = (sensor.min, sensor.max)
            && min >= max
        {
            wrong(
                &format!("sensors[{index}].min"),
                format!("is {min}; it must be below max, which is {max}"),
            );
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use contracts::{Location, Metric, PaymentMethodId, Plan};

    use super::*;

    fn good() -> SiteRegistration {
        SiteRegistration {
            name: "Alamosa".to_owned(),
            operator: "NOAA".to_owned(),
            location: Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 },
            sensors: vec![SensorRequest {
                metric: Metric::AirTemperature,
                unit: "Cel".to_owned(),
                min: Some(-50.0),
                max: Some(50.0),
            }],
            plan: Plan::Standard,
            payment_method: PaymentMethodId("pm_card_visa".to_owned()),
        }
    }

    fn fields(registration: &SiteRegistration) -> Vec<String> {
        check(registration).into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_good_registration_passes() {
        assert_eq!(check(&good()), []);
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let mut bad = good();
        bad.name = " ".to_owned();
        bad.location.latitude = 91.0;
        bad.sensors[0].unit = "degF".to_owned();
        bad.sensors[0].min = Some(60.0);
        assert_eq!(
            fields(&bad),
            ["name", "location.latitude", "sensors[0].unit", "sensors[0].min"]
        );
    }

    #[test]
    fn a_name_has_up_to_200_characters() {
        let mut long = good();
        long.name = "ü".repeat(200);
        assert_eq!(fields(&long), [""; 0]);
        long.name.push('x');
        assert_eq!(fields(&long), ["name"]);
    }

    #[test]
    fn none_and_too_many_sensors_are_refused() {
        let mut bad = good();
        bad.sensors.clear();
        assert_eq!(fields(&bad), ["sensors"]);
        bad.sensors = vec![good().sensors[0].clone(); MOST_SENSORS + 1];
        assert_eq!(fields(&bad), ["sensors"]);
        bad.sensors.pop();
        assert_eq!(fields(&bad), [""; 0]);
    }

    #[test]
    fn a_latitude_that_is_no_number_is_refused() {
        let mut bad = good();
        bad.location.latitude = f64::NAN;
        assert_eq!(fields(&bad), ["location.latitude"]);
    }

    #[test]
    fn a_place_is_on_earth() {
        for (latitude, longitude, elevation_m, wrong) in [
            (-90.0, -180.0, -500.0, ""),
            (90.0, 180.0, 9000.0, ""),
            (-90.1, 0.0, 0.0, "location.latitude"),
            (0.0, 180.1, 0.0, "location.longitude"),
            (0.0, -180.1, 0.0, "location.longitude"),
            (0.0, 0.0, -500.1, "location.elevationM"),
            (0.0, 0.0, 9000.1, "location.elevationM"),
        ] {
            let mut placed = good();
            placed.location = Location { latitude, longitude, elevation_m };
            assert_eq!(fields(&placed).join(" "), wrong, "{:?}", placed.location);
        }
    }

    #[test]
    fn the_hash_is_of_the_meaning() {
        let mut other = good();
        assert_eq!(hash(&good()), hash(&other));
        other.sensors[0].max = Some(51.0);
        assert_ne!(hash(&good()), hash(&other));
    }
}
