//! Sample sagas, sensors and times for tests.

use contracts::{
    Entity, EntityType, Metric, OperatorId, Plan, SagaContext, Scope, Sensor, SensorId, SiteId,
    Timestamp,
    names::{Consumer, Source},
    sensor::SensorMetadata,
};
use lambda::http::Caller;
use serde_json::{Value, json};

/// The region and the account of sample ARNs.
const REGION: &str = "eu-central-1:123456789012";

/// Returns noon of a fixed day, plus this number of seconds.
#[must_use]
pub fn noon(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_767_268_800_000 + 1000 * seconds)
}

/// Returns the saga of a site of the default operator with this name.
#[must_use]
pub fn saga(name: &str) -> SagaContext {
    saga_of(OperatorId::DEFAULT, name)
}

/// Returns the saga of an operator's site with this name.
#[must_use]
pub fn saga_of(operator: OperatorId, name: &str) -> SagaContext {
    SagaContext::for_site(operator, SiteId::registered(operator, "test", name), None)
}

/// Returns an operator that is not the default operator.
#[must_use]
pub fn other_operator() -> OperatorId {
    OperatorId::registered("another operator")
}

/// Returns a caller of the API that belongs to this operator.
#[must_use]
pub fn caller(operator: OperatorId, scope: Scope) -> Caller {
    let actor = "key:fso_12345678".to_owned();
    Caller { operator, scope, actor, plan: Plan::Professional }
}

/// Returns a caller that may read and change everything of the default operator.
#[must_use]
pub fn default_caller() -> Caller {
    caller(OperatorId::DEFAULT, Scope::Operator)
}

/// Returns sensors of a saga's site: the first with both limits, the second with one, the others without limits.
#[must_use]
pub fn sensors(saga: SagaContext, metrics: &[Metric]) -> Vec<Sensor> {
    let limits = [(Some(-50.0), Some(50.0)), (None, Some(99.5))];
    metrics
        .iter()
        .enumerate()
        .map(|(index, &metric)| {
            let (min, max) = limits.get(index).copied().unwrap_or_default();
            Sensor {
                sensor_id: SensorId::from_onboarding(saga.onboarding_id, index),
                metric,
                unit: metric.units()[0].to_owned(),
                min,
                max,
                utc_offset: None,
                metadata: SensorMetadata::default(),
            }
        })
        .collect()
}

/// The four sensors of a weather station, with three metrics.
pub const WEATHER: [Metric; 4] =
    [Metric::AirTemperature, Metric::AirTemperature, Metric::RelativeHumidity, Metric::AirPressure];

/// Returns the fields that the state machines pass to every step and undo.
#[must_use]
pub fn payload(saga: SagaContext) -> Value {
    json!({
        "onboardingId": saga.onboarding_id,
        "siteId": saga.site_id,
        "operatorId": saga.operator_id,
        "causationId": saga.causation_id,
    })
}

/// Returns the payload with sensors, for the forward steps that need them.
#[must_use]
pub fn payload_with_sensors(saga: SagaContext, metrics: &[Metric]) -> Value {
    let mut payload = payload(saga);
    payload["sensors"] = json!(sensors(saga, metrics));
    payload
}

/// Returns a function's sample event from `tests/events`.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn event(function: &str) -> Value {
    let file = format!("{}/../events/{function}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).expect(&file);
    serde_json::from_str(&text).expect(&file)
}

/// Returns the sample event with other data, as an event of the saga's entity of this kind.
///
/// # Panics
/// If there is no such sample.
#[must_use]
pub fn event_of(function: &str, saga: SagaContext, kind: EntityType, data: Value) -> Value {
    let mut event = event(function);
    let metadata = &mut event["detail"]["metadata"];
    metadata["correlationId"] = json!(saga.onboarding_id);
    metadata["operatorId"] = json!(saga.operator_id);
    metadata["entity"] = json!(Entity::for_site(kind, saga.site_id).expect("an entity of a site"));
    event["detail"]["data"] = data;
    event
}

/// Returns an event source mapping in the format of Lambda's API.
#[must_use]
pub fn event_source_mapping(environment: &str, consumer: Consumer<'_>, state: &str) -> Value {
    let source = match consumer.source {
        Source::Queue(name) => format!("arn:aws:sqs:{REGION}:{environment}-{name}"),
        Source::Stream(name) => format!("arn:aws:kinesis:{REGION}:stream/{environment}-{name}"),
        Source::Table(name) => {
            format!("arn:aws:dynamodb:{REGION}:table/{environment}-{name}/stream/2026-11-21T09:00")
        }
    };
    let function = consumer.function;
    json!({
        "UUID": "a UUID",
        "EventSourceArn": source,
        "FunctionArn": format!("arn:aws:lambda:{REGION}:function:{environment}-{function}:live"),
        "State": state,
        "StateTransitionReason": "USER_INITIATED",
        "LastModified": 1_795_251_600.5,
        "LastProcessingResult": "No records processed",
    })
}

/// The ARN of the inventory table's stream, without the time of its creation.
pub const STOCK_STREAM: &str = "arn:aws:dynamodb:eu-central-1:111122223333:table/inventory/stream/";

/// Returns the record of the inventory table's stream about a metric's stock.
#[must_use]
pub fn stock_change(metric: Metric, sequence: u64, quantity: u32) -> Value {
    let id = json!({ "S": format!("stock#{metric}") });
    json!({
        "eventID": sequence.to_string(),
        "eventName": "MODIFY",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "eu-central-1",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_767_268_800,
            "Keys": { "id": id },
            "NewImage": { "id": id, "quantity": { "N": quantity.to_string() } },
            "SequenceNumber": sequence.to_string(),
            "SizeBytes": 44,
            "StreamViewType": "NEW_IMAGE",
        },
        "eventSourceARN": format!("{STOCK_STREAM}2026-01-01T00:00:00.000"),
    })
}
