//! Registration of a site. `create-site` and `import-site` share it.

use contracts::{
    OnboardingId, OperatorId, SagaContext, Sensor, SensorId, SiteId, Timestamp, UtcOffset,
    events::SiteCreated,
    inbound::{SensorRequest, SiteRegistration},
};
use sha2::{Digest, Sha256};
use store::{Commit, NewEvent, Outbox, Table, Transaction};
use uuid::Uuid;

use crate::{OwnedStatus, SiteRow, SitesError, Status};

/// The dependencies of a registration.
#[derive(Debug)]
pub struct Registrar {
    /// The sites table.
    pub sites: Table,
    /// The outbox for `SiteCreated`.
    pub outbox: Outbox,
}

/// The result of a registration. It is the same for every repetition of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The id of the site.
    pub site_id: SiteId,
    /// The id of its onboarding.
    pub onboarding_id: OnboardingId,
}

impl Registrar {
    /// Registers an operator's site under the id that is derived from the operator, `channel` and `key`.
    ///
    /// The site's row is the idempotency record. A repeated registration finds the row, and the row's hash shows
    /// whether the registration is the same. Another registration with the same key is
    /// [`SitesError::KeyReused`].
    pub async fn register(
        &self,
        operator: OperatorId,
        channel: &str,
        key: &str,
        registration: SiteRegistration,
        causation_id: Option<Uuid>,
        now: Timestamp,
    ) -> Result<Registered, SitesError> {
        let site_id = SiteId::registered(operator, channel, key);
        let saga = SagaContext::for_site(operator, site_id, causation_id);
        let onboarding_id = saga.onboarding_id;
        let row = row(saga, &registration, now);
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
            .event(&self.outbox, NewEvent::in_saga(saga, site_id, row.sequence, now, created))
            .commit()
            .await?;
        let registered = Registered { site_id, onboarding_id };
        match commit {
            Commit::Done => Ok(registered),
            Commit::Refused(refused) => {
                let existing: Option<SiteRow> = refused.row(&SiteRow::key(site_id))?;
                match existing {
                    Some(existing) if existing.request_hash == row.request_hash => Ok(registered),
                    Some(_) => Err(SitesError::KeyReused(site_id)),
                    None => Err(SitesError::Busy(site_id)),
                }
            }
        }
    }
}

fn row(saga: SagaContext, registration: &SiteRegistration, now: Timestamp) -> SiteRow {
    let SagaContext { onboarding_id, operator_id, .. } = saga;
    let offset = registration.utc_offset;
    let sensors = registration.sensors.iter().enumerate();
    let sensors = sensors.map(|(index, request)| sensor(onboarding_id, index, offset, request));
    SiteRow {
        owned: OwnedStatus { operator_id, status: Status::Onboarding },
        name: registration.name.trim().to_owned(),
        operator: registration.operator.trim().to_owned(),
        location: registration.location,
        contact: None,
        sensors: sensors.collect(),
        plan: registration.plan,
        onboarding_id,
        request_hash: request_hash(registration),
        sequence: 1,
        created_at: now,
        activated_at: None,
        closed_at: None,
        failure: None,
    }
}

/// Returns the sensor of a request. The sensor has the site's UTC offset, because some services get the sensors but not
/// the site.
fn sensor(
    onboarding_id: OnboardingId,
    index: usize,
    utc_offset: Option<UtcOffset>,
    request: &SensorRequest,
) -> Sensor {
    Sensor {
        sensor_id: SensorId::from_onboarding(onboarding_id, index),
        metric: request.metric,
        unit: request.unit.clone(),
        min: request.min,
        max: request.max,
        utc_offset,
        metadata: (&request.metadata).into(),
    }
}

/// Returns the SHA-256 of the parsed registration, in hex.
///
/// The order of the JSON fields and the white space between them do not change the hash. White space around a name
/// changes the hash, although the name is stored without it. Earlier releases also hashed the name with this white
/// space. If this release did not, it would refuse the retry of a registration that an earlier release stored.
fn request_hash(registration: &SiteRegistration) -> String {
    let canonical = serde_json::to_vec(registration).unwrap_or_default();
    Sha256::digest(canonical).iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use contracts::{Location, Metric, PaymentMethodId, Plan, sensor::RegisteredMetadata};

    use super::*;

    fn valid_registration() -> SiteRegistration {
        SiteRegistration {
            name: "Alamosa".to_owned(),
            operator: "NOAA".to_owned(),
            location: Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 },
            utc_offset: None,
            sensors: vec![SensorRequest {
                metric: Metric::AirTemperature,
                unit: "Cel".to_owned(),
                min: Some(-50.0),
                max: Some(50.0),
                metadata: RegisteredMetadata::default(),
            }],
            plan: Plan::Standard,
            payment_method: PaymentMethodId("pm_card_visa".to_owned()),
        }
    }

    #[test]
    fn a_changed_field_changes_the_hash() {
        let mut other = valid_registration();
        assert_eq!(request_hash(&valid_registration()), request_hash(&other));
        other.sensors[0].max = Some(51.0);
        assert_ne!(request_hash(&valid_registration()), request_hash(&other));
        let offset = "-07:00".parse().ok();
        let other = SiteRegistration { utc_offset: offset, ..valid_registration() };
        assert_ne!(request_hash(&valid_registration()), request_hash(&other));
    }
}
