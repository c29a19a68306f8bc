//! Operators with keys and a site, for tests of what a caller may see and do.

use anyhow::{Context, Result, ensure};
use contracts::{Metric, SiteId, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    Stack,
    api::Call,
    sites::{DECLINED_CARD, GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};

/// An operator with keys of each scope, an active site and a sensor that has a reading. Every text that it chose
/// contains the marker.
#[derive(Debug)]
pub struct Operator {
    /// The id.
    pub id: String,
    /// The marker.
    pub marker: String,
    /// A key of the scope `operator`.
    pub full_key: String,
    /// A key of the scope `read`.
    pub read_key: String,
    /// A logger key for the active site.
    pub logger_key: String,
    /// A logger key for a site that does not exist.
    pub other_logger_key: String,
    /// The id of a key that nobody uses.
    pub unused_key: String,
    /// The active site.
    pub site: SiteId,
    /// The sensor of the active site.
    pub sensor: String,
    /// A site whose onboarding was undone, so that its deletion changes nothing.
    pub rejected_site: String,
}

/// Returns a text that is different in each call.
#[must_use]
pub fn unique() -> String {
    Uuid::new_v4().simple().to_string()
}

/// Returns the text of a field of a response.
pub fn text(value: &Value, field: &str) -> Result<String> {
    Ok(value[field].as_str().with_context(|| format!("no {field} in {value}"))?.to_owned())
}

/// Creates a key with the credential of another caller, or of an administrator. Returns the response's body.
pub async fn create_key(stack: &Stack, by: Option<&str>, body: Value) -> Result<Value> {
    let call = Call::new(Method::POST, "/keys").key(&unique()).text(body.to_string());
    let response = stack.call(call.bearing_or_admin(by)).await?;
    ensure!(response.status == 201, "{response}");
    Ok(response.body)
}

impl Operator {
    /// Creates the operator and its keys, onboards its site, and sends a reading with its logger key.
    pub async fn create(stack: &Stack, name: &str) -> Result<Self> {
        let marker = format!("{name}{}", unique());
        // The largest plan, so that the rate limit seldom refuses the requests of a test.
        let body = json!({ "name": marker, "plan": "professional" });
        let call = Call::new(Method::POST, "/operators").key(&marker).text(body.to_string());
        let created = stack.call(call).await?;
        ensure!(created.status == 201, "{created}");
        let id = text(&created.body, "operatorId")?;
        let body = json!({ "name": marker, "scope": "operator", "operatorId": id });
        let full_key = text(&create_key(stack, None, body).await?, "key")?;

        let key = async |scope: &str| {
            create_key(stack, Some(&full_key), json!({ "name": marker, "scope": scope })).await
        };
        let read_key = text(&key("read").await?, "key")?;
        let unused_key = text(&key("read").await?, "keyId")?;
        let other_logger_key = text(&key(&format!("logger:{}", Uuid::new_v4())).await?, "key")?;

        let rejected = onboard(stack, &full_key, &marker, DECLINED_CARD, "REJECTED").await?;
        let rejected_site = text(&rejected, "siteId")?;
        let site = onboard(stack, &full_key, &marker, GOOD_CARD, "ACTIVE").await?;
        let site_id = site["siteId"].as_str().context("no siteId")?.parse()?;
        let sensor = text(&site["sensors"][0], "sensorId")?;
        let logger_key = text(&key(&format!("logger:{site_id}")).await?, "key")?;
        let operator = Self {
            id,
            marker,
            full_key,
            read_key,
            logger_key,
            other_logger_key,
            unused_key,
            site: site_id,
            sensor,
            rejected_site,
        };
        operator.send_reading(stack).await?;
        let appended = stack.call(operator.event("1").bearing(&operator.full_key)).await?;
        ensure!(appended.status == 201, "{appended}");
        Ok(operator)
    }

    /// Returns a request that appends an event of the operator.
    #[must_use]
    pub fn event(&self, id: &str) -> Call {
        let event = json!({
            "specversion": "1.0", "id": id, "source": format!("test.{}", self.marker), "type": "TestDone",
            "subject": "test.instrument/1", "correlationid": "run-1", "data": { "note": self.marker },
        });
        Call::new(Method::POST, "/events").text(event.to_string())
    }

    /// Returns a bundle of one reading of the operator's sensor.
    #[must_use]
    pub fn bundle(&self, at: Timestamp, value: f64) -> Value {
        json!({
            "bundleId": unique(), "siteId": self.site,
            "series": [{ "sensorId": self.sensor, "samples": [[at, value]] }],
        })
    }

    /// Sends a reading with the logger key, again and again until it is stored. Telemetry may know the sensor only some
    /// time after the site is active.
    async fn send_reading(&self, stack: &Stack) -> Result<()> {
        let at = Timestamp::now().plus_millis(-3_600_000);
        let bundle = self.bundle(at, 21.5).to_string();
        until("a reading to be stored", TIMEOUT, async || {
            let call = Call::post_readings(bundle.clone()).bearing(&self.logger_key);
            let sent = stack.call(call).await?;
            ensure!(sent.status == 202, "{sent}");
            let read = stack.call(self.readings().bearing(&self.read_key)).await?;
            Ok(match read.body["samples"].as_array() {
                Some(samples) if !samples.is_empty() => Poll::Ready(()),
                _ => Poll::Pending(read),
            })
        })
        .await
    }

    /// Returns a request that reads the sensor's readings.
    #[must_use]
    pub fn readings(&self) -> Call {
        Call::get(format!("/sensors/{}/readings", self.sensor))
    }
}

/// Registers a site of the key's operator, and waits until it has the status. Returns the response of
/// `GET /sites/{siteId}`.
pub async fn onboard(
    stack: &Stack,
    key: &str,
    marker: &str,
    card: &str,
    status: &str,
) -> Result<Value> {
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    let mut body = registration(marker, &[Metric::AirTemperature], card);
    body["operator"] = json!(marker);
    let created = stack.call(Call::post_site(&unique(), &body).bearing(key)).await?;
    ensure!(created.status == 202, "{created}");
    let site = text(&created.body, "siteId")?;
    until(&format!("site {site} to be {status}"), TIMEOUT, async || {
        let response = stack.call(Call::get(format!("/sites/{site}")).bearing(key)).await?;
        Ok(match response.body["status"].as_str() {
            Some(actual) if actual == status => Poll::Ready(response.body),
            _ => Poll::Pending(response),
        })
    })
    .await
}
