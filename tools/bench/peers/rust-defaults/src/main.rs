//! configure-alerting: the row and its event in one transaction.

use std::{collections::HashMap, fmt};

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::{
    Client,
    operation::transact_write_items::TransactWriteItemsError,
    types::{
        AttributeValue, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem,
        builders::PutBuilder,
    },
};
use chrono::{SecondsFormat, Utc};
use lambda_runtime::{Diagnostic, Error, LambdaEvent, run, service_fn, tracing};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::{Uuid, uuid};

const FIELDSTATION: Uuid = uuid!("6f1e1d57-a710-4e00-9a5e-0f1e1d57a710");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Command {
    onboarding_id: Uuid,
    site_id: Uuid,
    causation_id: Option<Uuid>,
    sensors: Vec<Sensor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sensor {
    sensor_id: Uuid,
    metric: Metric,
    unit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<f64>,
}

#[derive(Serialize, Deserialize)]
enum Metric {
    #[serde(rename = "air_temperature")]
    AirTemperature,
    #[serde(rename = "relative_humidity")]
    RelativeHumidity,
    #[serde(rename = "air_pressure")]
    AirPressure,
    #[serde(rename = "wind_speed")]
    WindSpeed,
    #[serde(rename = "wind_from_direction")]
    WindFromDirection,
    #[serde(rename = "precipitation_amount")]
    PrecipitationAmount,
    #[serde(rename = "surface_downwelling_shortwave_flux_in_air")]
    DownwellingShortwave,
    #[serde(rename = "surface_upwelling_shortwave_flux_in_air")]
    UpwellingShortwave,
    #[serde(rename = "surface_direct_along_beam_shortwave_flux_in_air")]
    DirectShortwave,
    #[serde(rename = "surface_diffuse_downwelling_shortwave_flux_in_air")]
    DiffuseShortwave,
    #[serde(rename = "surface_downwelling_longwave_flux_in_air")]
    DownwellingLongwave,
    #[serde(rename = "surface_upwelling_longwave_flux_in_air")]
    UpwellingLongwave,
    #[serde(rename = "surface_downwelling_uvb_flux_in_air")]
    UvbFlux,
    #[serde(rename = "surface_downwelling_photosynthetic_radiative_flux_in_air")]
    PhotosyntheticFlux,
    #[serde(rename = "ambient_gamma_dose_equivalent_rate")]
    GammaDoseRate,
    #[serde(rename = "mass_concentration_of_pm2p5_ambient_aerosol_particles_in_air")]
    Pm2p5,
    #[serde(rename = "mass_concentration_of_pm10_ambient_aerosol_particles_in_air")]
    Pm10,
    #[serde(rename = "mass_concentration_of_ozone_in_air")]
    Ozone,
    #[serde(rename = "mass_concentration_of_nitrogen_dioxide_in_air")]
    NitrogenDioxide,
    #[serde(rename = "mole_fraction_of_carbon_dioxide_in_air")]
    CarbonDioxide,
    #[serde(rename = "water_surface_height_above_reference_datum")]
    WaterLevel,
    #[serde(rename = "water_temperature")]
    WaterTemperature,
    #[serde(rename = "water_volume_transport_in_river_channel")]
    WaterDischarge,
    #[serde(rename = "water_ph")]
    WaterPh,
    #[serde(rename = "water_electrical_conductivity")]
    WaterConductivity,
    #[serde(rename = "mass_concentration_of_oxygen_in_water")]
    DissolvedOxygen,
    #[serde(rename = "water_turbidity")]
    Turbidity,
}

#[derive(Serialize)]
struct Rule {
    #[serde(flatten)]
    sensor: Sensor,
    state: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    onboarding_id: Uuid,
    site_id: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    causation_id: Option<Uuid>,
    status: &'static str,
    rules: Vec<Rule>,
    sequence: u64,
    at: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventRow {
    entity: String,
    sequence: u64,
    #[serde(rename = "type")]
    kind: &'static str,
    source: &'static str,
    occurred_at: String,
    correlation_id: Uuid,
    detail: String,
    unpublished: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    alerting_id: Uuid,
}

#[derive(Debug)]
enum Failure {
    Superseded(Uuid),
    Transient(String),
    Internal(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded(id) => write!(f, "alerting {id} is already removed"),
            Self::Transient(reason) | Self::Internal(reason) => f.write_str(reason),
        }
    }
}

impl From<Failure> for Diagnostic {
    fn from(failure: Failure) -> Self {
        let error_type = match failure {
            Failure::Superseded(_) => "Superseded",
            Failure::Transient(_) => "Transient",
            Failure::Internal(_) => "Internal",
        };
        Self { error_type: error_type.to_owned(), error_message: failure.to_string() }
    }
}

struct Step {
    dynamodb: Client,
    alerting_table: String,
    events_table: String,
}

impl Step {
    async fn run(&self, command: Command) -> Result<Reply, Failure> {
        let alerting_id = Uuid::new_v5(&command.onboarding_id, b"alerting");
        let key = format!("alerting#{alerting_id}");
        let now = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        let rules: Vec<_> = command
            .sensors
            .into_iter()
            .filter(|sensor| sensor.min.is_some() || sensor.max.is_some())
            .map(|sensor| Rule { sensor, state: "NORMAL" })
            .collect();

        let event_id = Uuid::new_v5(&FIELDSTATION, format!("event/{key}/1").as_bytes());
        let mut metadata = json!({
            "eventId": event_id,
            "type": "AlertingConfigured",
            "version": 1,
            "occurredAt": now,
            "entity": { "type": "alerting", "id": alerting_id },
            "sequence": 1,
            "correlationId": command.onboarding_id,
        });
        if let Some(causation_id) = command.causation_id {
            metadata["causationId"] = json!(causation_id);
        }
        let data = json!({ "siteId": command.site_id, "rules": rules.len() });
        let event = EventRow {
            entity: key.clone(),
            sequence: 1,
            kind: "AlertingConfigured",
            source: "fieldstation.alerting",
            occurred_at: now.clone(),
            correlation_id: command.onboarding_id,
            detail: json!({ "metadata": metadata, "data": data }).to_string(),
            unpublished: (alerting_id.as_bytes()[0] % 8).to_string(),
        };
        let row = Row {
            id: key,
            onboarding_id: command.onboarding_id,
            site_id: command.site_id,
            causation_id: command.causation_id,
            status: "CONFIGURED",
            rules,
            sequence: 1,
            at: now,
        };

        let row = put(&self.alerting_table, &row, "attribute_not_exists(id)")?
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let event = put(&self.events_table, &event, "attribute_not_exists(entity)")?;
        let response = self
            .dynamodb
            .transact_write_items()
            .transact_items(transact(row)?)
            .transact_items(transact(event)?)
            .send()
            .await;
        let Err(error) = response else { return Ok(Reply { alerting_id }) };
        let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) =
            error.as_service_error()
        else {
            return Err(Failure::Transient(format!("{error:?}")));
        };
        let reason = cancelled.cancellation_reasons().first();
        let status = reason
            .filter(|reason| reason.code() == Some("ConditionalCheckFailed"))
            .and_then(|reason| reason.item())
            .and_then(|item| item.get("status"))
            .and_then(|status| status.as_s().ok());
        match status.map(String::as_str) {
            Some("CONFIGURED") => Ok(Reply { alerting_id }),
            Some(_) => Err(Failure::Superseded(alerting_id)),
            None => Err(Failure::Transient(cancelled.to_string())),
        }
    }
}

fn put(table: &str, row: &impl Serialize, condition: &str) -> Result<PutBuilder, Failure> {
    let item: HashMap<String, AttributeValue> =
        serde_dynamo::to_item(row).map_err(|error| Failure::Internal(error.to_string()))?;
    Ok(Put::builder().table_name(table).set_item(Some(item)).condition_expression(condition))
}

fn transact(put: PutBuilder) -> Result<TransactWriteItem, Failure> {
    let put = put.build().map_err(|error| Failure::Internal(error.to_string()))?;
    Ok(TransactWriteItem::builder().put(put).build())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing::init_default_subscriber();
    let config = aws_config::load_defaults(BehaviorVersion::latest()).await;
    let step = Step {
        dynamodb: Client::new(&config),
        alerting_table: std::env::var("ALERTING_TABLE")?,
        events_table: std::env::var("EVENTS_TABLE")?,
    };
    let step = &step;
    run(service_fn(async move |event: LambdaEvent<Command>| {
        let request_id = event.context.request_id;
        let correlation_id = event.payload.onboarding_id;
        let response = step.run(event.payload).await;
        match &response {
            Ok(_) => tracing::info!(%request_id, %correlation_id, "done"),
            Err(failure) => {
                tracing::error!(%request_id, %correlation_id, reason = %failure, "failed")
            }
        }
        response
    }))
    .await
}
