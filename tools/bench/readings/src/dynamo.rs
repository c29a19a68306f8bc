//! In-process stub of DynamoDB: it accepts every put, and every sensor of the benchmark is active.

use std::collections::HashMap;

use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_dynamodb::config::{BehaviorVersion, Region};
use aws_smithy_http_client::test_util::infallible_client_fn;
use aws_smithy_types::body::SdkBody;
use aws_types::SdkConfig;
use contracts::{SensorId, SiteId};
use serde_json::{Value, json};

/// Returns the configuration of clients that use the stub. `sites` has the site of each sensor.
pub fn config(sites: HashMap<SensorId, SiteId>) -> SdkConfig {
    let credentials = Credentials::from_keys("test", "test", None);
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(infallible_client_fn(move |request: http::Request<SdkBody>| {
            let target = request.headers().get("x-amz-target").and_then(|name| name.to_str().ok());
            http::Response::new(match target {
                Some("DynamoDB_20120810.BatchGetItem") => {
                    SdkBody::from(register(&sites, request.body().bytes().unwrap_or_default()))
                }
                _ => SdkBody::from("{}"),
            })
        }))
        .build()
}

/// Returns the rows of the requested sensors.
fn register(sites: &HashMap<SensorId, SiteId>, request: &[u8]) -> String {
    let request: Value = serde_json::from_slice(request).unwrap_or_default();
    let keys = request["RequestItems"]["readings"]["Keys"].as_array().into_iter().flatten();
    let rows: Vec<_> = keys
        .filter_map(|key| {
            let id = key["sensorId"]["S"].as_str()?;
            let site = sites.get(&id.parse().ok()?)?;
            Some(json!({
                "sensorId": { "S": id },
                "row": { "S": "SENSOR" },
                "siteId": { "S": site },
                "sensor": { "M": {
                    "sensorId": { "S": id },
                    "metric": { "S": "air_temperature" },
                    "unit": { "S": "Cel" },
                } },
            }))
        })
        .collect();
    json!({ "Responses": { "readings": rows } }).to_string()
}
