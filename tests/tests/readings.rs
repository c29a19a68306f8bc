//! Tests readings from the producer to the query on the deployed stack. Each test has its own site.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    Event, Metric, OnboardingId, OperatorId, SensorId, SiteId, Timestamp,
    events::{ReadingBackToNormal, ReadingBreachedThreshold},
    names,
    readings::Bundle,
    sample::Sample,
};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    capture::{Capture, correlation, event_id},
    data_logger::send,
    log,
    readings::{Bucket, days_ago, first_day, gzip, second_day},
    sending::{Site, alerts, samples_of},
    sites::FORWARD,
    wait::{Poll, TIMEOUT, until},
};

const MINUTE: i64 = 60_000;

#[tokio::test]
async fn a_bundle_is_returned_bit_for_bit_and_stored_once() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "once").await?;
    // Decimals whose last bit depends on correct rounding, and the limits of the range.
    let values =
        [31.245_270_191_439_438, 121.487_919_511_619_45, -0.0, 5e-324, f64::MAX, 1.0 / 3.0];
    let first = site.bundle("first", &first_day("00:00:00"), &values)?;
    let second = site.bundle("second", &first_day("01:00:00"), &[1.0, 2.0])?;
    let response = stack.call(Call::post_readings(serde_json::to_vec(&first)?)).await?;
    assert_eq!(response.status, 202, "{response}");
    assert_eq!(response.body, json!({ "accepted": 1, "bundles": ["first"] }));
    site.samples(&stack, values.len()).await?;
    let rows = stack.series_rows(site.sensors[0]).await?;

    // The bundle is sent again: alone, with another zero, and in a list with another bundle.
    send(&stack, &[&first]).await?;
    let text = serde_json::to_string(&first)?;
    let other_zero = text.replace(",0.0]", ",-0.0]");
    assert_ne!(other_zero, text);
    let response = stack.call(Call::post_readings(other_zero)).await?;
    assert_eq!(response.status, 202, "{response}");
    let list = serde_json::to_vec(&[&first, &second])?;
    let response = stack.call(Call::post_readings(list)).await?;
    assert_eq!(response.status, 202, "{response}");
    assert_eq!(response.body, json!({ "accepted": 2, "bundles": ["first", "second"] }));
    let samples = site.samples(&stack, values.len() + 2).await?;

    let bits = |samples: &[Sample]| -> Vec<_> {
        samples.iter().map(|sample| (sample.at, sample.value.map(f64::to_bits))).collect()
    };
    assert_eq!(bits(&samples), bits(&samples_of(&[&first, &second])));
    let after = stack.series_rows(site.sensors[0]).await?;
    assert_eq!(after.len(), 2);
    assert_eq!(after[0], rows[0], "the repeated bundle was written again");
    let response = stack.readings(site.sensors[0], "").await?;
    assert_eq!(response.body["sensorId"], json!(site.sensors[0]));
    assert_eq!(response.body["unit"], "Cel");
    Ok(())
}

#[tokio::test]
async fn invalid_bundles_are_refused_and_not_stored() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "refused").await?;
    let good = serde_json::to_value(site.bundle("good", &first_day("00:00:00"), &[1.0, 2.0])?)?;
    let with = |pointer: &str, value: Value| {
        let mut bundle = good.clone();
        *bundle.pointer_mut(pointer).expect("the bundle has this field") = value;
        bundle
    };
    let mut unknown_field = good.clone();
    unknown_field["quality"] = json!("good");
    let ahead = Timestamp::now().plus_millis(60 * MINUTE);
    let sample = "/series/0/samples/1";
    let bodies = [
        ("{\"bundleId\": ".to_owned(), "body"),
        ("[]".to_owned(), "body"),
        (with("/bundleId", json!("a b")).to_string(), "bundleId"),
        (with("/siteId", json!("alamosa")).to_string(), "siteId"),
        (with("/series", json!([])).to_string(), "series"),
        (with("/series/0/samples", json!([])).to_string(), "series[0].samples"),
        (with(sample, json!(["noon", 1])).to_string(), "series[0].samples[1][0]"),
        (with(sample, json!([first_day("00:01:00"), "1"])).to_string(), "series[0].samples[1][1]"),
        (with(sample, json!([first_day("00:00:00"), 1])).to_string(), "series[0].samples[1]"),
        (with(sample, json!([ahead, 1])).to_string(), "series[0].samples[1]"),
        (unknown_field.to_string(), "quality"),
    ];
    for (body, field) in bodies {
        let response = stack.call(Call::post_readings(body.clone())).await?;
        assert_eq!(response.status, 400, "{body}: {response}");
        assert_eq!(response.header("content-type"), "application/problem+json", "{response}");
        assert_eq!(response.fields(), [field], "{body}: {response}");
    }

    let many: Vec<_> =
        (0..501).map(|number| with("/bundleId", json!(format!("n{number}")))).collect();
    // 30,000 minutes are three weeks.
    let large = site.bundle("large", &days_ago(30, "00:00:00"), &vec![0.123_456_789; 30_000])?;
    for (what, body, advice) in [
        ("501 bundles", serde_json::to_vec(&many)?, "500"),
        ("a bundle of more than 1 MiB", serde_json::to_vec(&large)?, "fewer minutes"),
        ("a body of more than 4 MiB", vec![b' '; 4 * 1024 * 1024 + 1], "several"),
    ] {
        let response = stack.call(Call::post_readings(body)).await?;
        assert_eq!(response.status, 413, "{what}: {response}");
        let detail = response.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(advice), "{what}: no advice on how to split: {response}");
    }

    // This bundle is processed after everything that was put on the stream before it.
    let last = site.bundle("last", &second_day("00:00:00"), &[3.0])?;
    send(&stack, &[&last]).await?;
    assert_eq!(site.samples(&stack, 1).await?, samples_of(&[&last]));
    Ok(())
}

#[tokio::test]
async fn the_valid_part_of_a_request_is_stored_and_the_rest_is_named() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "partly").await?;
    let first = site.bundle("first", &first_day("00:00:00"), &[1.0, 2.0])?;
    let second = site.bundle("second", &first_day("01:00:00"), &[3.0])?;
    let mut twice = serde_json::to_value(&second)?;
    twice["series"] = json!([twice["series"][0], twice["series"][0]]);
    let mut bad = serde_json::to_value(&second)?;
    bad["bundleId"] = json!("");
    let list = json!([first, bad, first, twice]);
    let response = stack.call(Call::post_readings(list.to_string())).await?;
    assert_eq!(response.status, 202, "{response}");
    assert_eq!(response.body["bundles"], json!(["first", "second"]), "{response}");
    assert_eq!(
        response.fields(),
        ["[1].bundleId", "[2].bundleId", "[3].series[1].sensorId"],
        "{response}"
    );
    assert_eq!(response.body["errors"][1]["reason"], "Duplicate", "{response}");
    assert_eq!(site.samples(&stack, 3).await?, samples_of(&[&first, &second]));
    Ok(())
}

#[tokio::test]
async fn times_without_an_offset_are_stored_in_utc_by_the_offset_of_their_site() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::with_offset(&stack, "offset", "-07:00").await?;
    let response = stack.site(site.ids.site_id).await?;
    assert_eq!(response.body["utcOffset"], "-07:00", "{response}");
    let local = |time: &str| first_day(time).trim_end_matches('Z').to_owned();
    let body = |site: &Site, id: &str, extra: &[Value]| {
        let samples = json!([[local("10:00:00"), 1.5], [local("24:00:00"), 2.5]]);
        let mut series = vec![json!({ "sensorId": site.sensors[0], "samples": samples })];
        series.extend_from_slice(extra);
        json!({ "bundleId": id, "siteId": site.ids.site_id, "series": series }).to_string()
    };
    // The producer of the second record writes to the stream itself.
    let response = stack.call(Call::post_readings(body(&site, "local", &[]))).await?;
    assert_eq!(response.status, 202, "{response}");
    stack.put_record(&site.key(), body(&site, "local", &[])).await?;
    let sample = |time: String, value| anyhow::Ok(Sample::new(time.parse()?, value));
    let expected = [sample(first_day("17:00:00"), 1.5)?, sample(second_day("07:00:00"), 2.5)?];
    assert_eq!(site.samples(&stack, 2).await?, expected);

    let metrics = [Metric::AirTemperature, Metric::RelativeHumidity];
    let other = Site::with_limits(&stack, "no offset", &metrics, &[]).await?;
    let refused = stack.call(Call::post_readings(body(&other, "refused", &[]))).await?;
    assert_eq!(refused.status, 400, "{refused}");
    assert_eq!(refused.fields(), ["series[0].samples[0][0]"], "{refused}");
    let message = refused.body["errors"][0]["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("or declare utcOffset when you register the site"), "{refused}");
    let samples = json!([[first_day("17:00:00"), 3.5]]);
    let good = json!({ "sensorId": other.sensors[1], "samples": samples });
    let partly = stack.call(Call::post_readings(body(&other, "partly", &[good]))).await?;
    assert_eq!(partly.status, 202, "{partly}");
    assert_eq!(partly.fields(), ["series[0].samples[0][0]"], "{partly}");
    let stored = until("one sample", TIMEOUT, async || {
        let samples = stack.samples(other.sensors[1], "").await?;
        Ok(if samples.is_empty() { Poll::Pending(0) } else { Poll::Ready(samples) })
    });
    assert_eq!(stored.await?, [sample(first_day("17:00:00"), 3.5)?]);
    assert_eq!(stack.samples(other.sensors[0], "").await?, []);

    let patch = Call::patch(format!("/sites/{}", site.ids.site_id), r#"{"utcOffset": "Z"}"#);
    let response = stack.call(patch).await?;
    assert_eq!((response.status, response.fields()), (400, vec!["utcOffset"]), "{response}");
    Ok(())
}

/// The maximum age is four days on the local stack.
#[tokio::test]
async fn readings_that_are_old_when_they_arrive_raise_no_alert() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature];
    let site = Site::with_limits(&stack, "old", &metrics, &[("max", 30.0)]).await?;
    let capture = Capture::start(&stack).await?;
    let now = Timestamp::now().to_string();
    // The records of a site are judged in order, so the alert of the live one comes last.
    for (id, start) in [("old", days_ago(5, "00:00:00")), ("live", now)] {
        send(&stack, &[&site.bundle(id, &start, &[40.0])?]).await?;
    }
    let has_alert = |events: &[Value]| !alerts(events, &site).is_empty();
    let captured = capture.take_until(&stack, TIMEOUT, has_alert).await?;
    capture.stop(&stack).await?;
    let alerts = alerts(&captured, &site);
    let samples = site.samples(&stack, 2).await?;
    let at: Vec<_> = alerts.iter().map(|(_, data)| data["at"].clone()).collect();
    assert_eq!(at, [json!(samples[1].at)], "{alerts:?}");
    Ok(())
}

#[tokio::test]
async fn readings_are_returned_page_by_page() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "pages").await?;
    let sensor = site.sensors[0];
    let values: Vec<f64> = (0..20).map(f64::from).collect();
    let bundles = ["00:00", "00:20", "00:40"].map(|start| {
        site.bundle(&format!("b{start}"), &first_day(&format!("{start}:00")), &values)
    });
    let bundles = bundles.into_iter().collect::<Result<Vec<_>>>()?;
    let bundles: Vec<_> = bundles.iter().collect();
    // The last bundle is stored before the others.
    for bundle in bundles.iter().rev() {
        send(&stack, &[bundle]).await?;
    }
    let all = samples_of(&bundles);
    assert_eq!(site.samples(&stack, all.len()).await?, all);

    assert_eq!(stack.samples(sensor, "limit=7&order=asc").await?, all);
    let backwards: Vec<_> = all.iter().rev().copied().collect();
    assert_eq!(stack.samples(sensor, "limit=7&order=desc").await?, backwards);
    let (from, to) = (first_day("00:10:00"), first_day("00:50:00"));
    let between = format!("from={from}&to={to}&limit=13");
    assert_eq!(stack.samples(sensor, &between).await?, all[10..50]);

    let page = stack.readings(sensor, "limit=7").await?;
    let token = page.body["next"].as_str().context("no next page")?.to_owned();
    // A letter in the middle, because none of its bits is padding.
    let (before, after) = token.split_at(token.len() / 2);
    let replacement = if after.starts_with('A') { 'B' } else { 'A' };
    let tampered = format!("{before}{replacement}{}", &after[1..]);
    for query in [
        format!("limit=7&next={tampered}"),
        format!("limit=7&order=desc&next={token}"),
        format!("limit=7&from={from}&next={token}"),
        "limit=7&next=abc".to_owned(),
    ] {
        let response = stack.readings(sensor, &query).await?;
        assert_eq!((response.status, response.fields()), (400, vec!["query next"]), "{query}");
    }
    for (query, field) in [
        ("limit=0", "query limit"),
        ("limit=10001", "query limit"),
        ("order=up", "query order"),
        ("from=yesterday", "query from"),
        (&format!("from={to}&to={from}"), "query from"),
        ("aggregate=week", "query aggregate"),
        ("page=2", "query page"),
    ] {
        let response = stack.readings(sensor, query).await?;
        assert_eq!((response.status, response.fields()), (400, vec![field]), "{query}: {response}");
    }
    let unknown = SensorId::from_onboarding(
        OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "unknown")),
        0,
    );
    assert_eq!(stack.readings(unknown, "").await?.status, 404);
    let response = stack.call(Call::get("/sensors/thermometer/readings")).await?;
    assert_eq!((response.status, response.fields()), (400, vec!["path sensorId"]), "{response}");
    Ok(())
}

#[tokio::test]
async fn readings_are_aggregated_by_hour_and_day() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "aggregates").await?;
    let sensor = site.sensors[0];
    // Samples before and after midnight, then an hour without samples before the last one.
    let night = site.bundle("night", &first_day("23:58:00"), &[1.0, 2.0, 4.0, 8.0])?;
    let morning = site.bundle("morning", &second_day("02:00:00"), &[-3.0])?;
    send(&stack, &[&night, &morning]).await?;
    site.samples(&stack, 5).await?;

    let bucket = |start: &str, count, min, max, mean| {
        let (min, max, mean) = (Some(min), Some(max), Some(mean));
        anyhow::Ok(Bucket { start: start.parse()?, count, min, max, mean })
    };
    let hours = [
        bucket(&first_day("23:00:00"), 2, 1.0, 2.0, 1.5)?,
        bucket(&second_day("00:00:00"), 2, 4.0, 8.0, 6.0)?,
        bucket(&second_day("02:00:00"), 1, -3.0, -3.0, -3.0)?,
    ];
    assert_eq!(stack.buckets(sensor, "aggregate=hour").await?, hours);
    assert_eq!(stack.buckets(sensor, "aggregate=hour&limit=1").await?, hours, "page by page");
    let days = [
        bucket(&second_day("00:00:00"), 3, -3.0, 8.0, 3.0)?,
        bucket(&first_day("00:00:00"), 2, 1.0, 2.0, 1.5)?,
    ];
    assert_eq!(stack.buckets(sensor, "aggregate=day&order=desc").await?, days);
    let (from, to) = (first_day("23:59:00"), second_day("00:01:00"));
    let cut = format!("aggregate=hour&from={from}&to={to}");
    let halves = [
        bucket(&first_day("23:00:00"), 1, 2.0, 2.0, 2.0)?,
        bucket(&second_day("00:00:00"), 1, 4.0, 4.0, 4.0)?,
    ];
    assert_eq!(stack.buckets(sensor, &cut).await?, halves);
    Ok(())
}

#[tokio::test]
async fn invalid_records_are_quarantined_with_their_payload_and_the_rest_is_stored() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "poison").await?;
    let neighbour = Site::new(&stack, "poison's neighbour").await?;
    let plain = site.bundle("plain", &first_day("00:00:00"), &[1.0, 2.0])?;
    let packed = site.bundle("packed", &first_day("00:02:00"), &[3.0, 4.0])?;
    stack.put_record(&site.key(), serde_json::to_vec(&plain)?).await?;

    let other = |id: &str| site.bundle(id, &first_day("12:00:00"), &[5.0]);
    let mut no_schema = serde_json::to_value(other("no-schema")?)?;
    no_schema["series"][0]["samples"][0][1] = json!("warm");
    let mut unknown = other("unknown")?;
    unknown.series[0].sensor_id = SensorId::from_onboarding(
        OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "unknown")),
        0,
    );
    let mut foreign = other("foreign")?;
    foreign.series[0].sensor_id = neighbour.sensors[0];
    let mut ahead = other("ahead")?;
    ahead.series[0].samples[0].at = Timestamp::now().plus_millis(60 * MINUTE);
    let mut changed = plain.clone();
    changed.series[0].samples[1].value = Some(2.5);
    let mut truncated = gzip(&serde_json::to_vec(&other("truncated")?)?)?;
    truncated.truncate(truncated.len() / 2);
    let json = |bundle: &Bundle| serde_json::to_vec(bundle);
    let poison = [
        ("InvalidInput", "gzip", b"no JSON \xff".to_vec()),
        ("InvalidInput", "series[0].samples[0][1]", no_schema.to_string().into_bytes()),
        ("InvalidInput", "ahead of our clock", json(&ahead)?),
        ("InvalidInput", "gzip", truncated),
        (
            "InvalidInput",
            "siteId",
            json(&neighbour.bundle("key", &first_day("00:00:00"), &[6.0])?)?,
        ),
        ("UnknownSensor", "not in the register", json(&unknown)?),
        ("SensorOfAnotherSite", "belongs to site", json(&foreign)?),
        ("BundleConflict", "different samples", json(&changed)?),
    ];
    let mut put = Vec::new();
    for (_, _, data) in &poison {
        put.push(stack.put_record(&site.key(), data.clone()).await?);
    }
    stack.put_record(&site.key(), gzip(&serde_json::to_vec(&packed)?)?).await?;

    let samples = site.samples(&stack, 4).await?;
    assert_eq!(samples, samples_of(&[&plain, &packed]));
    let quarantined = stack.wait_for_quarantined(&site.key(), poison.len()).await?;
    assert_eq!(quarantined.len(), poison.len());
    for ((error, reason, data), position) in poison.iter().zip(&put) {
        let record = quarantined.iter().find(|record| record.position() == *position);
        let record = record.with_context(|| format!("{error} at {position:?}"))?;
        let failure = &record.failure;
        failure.assert_state("OPEN", 1, 0)?;
        assert_eq!(failure.error.name, *error, "{failure}");
        assert!(
            failure.error.message.contains(reason),
            "the error does not contain {reason:?}: {failure}"
        );
        assert_eq!(failure.site_id, Some(site.key()), "{failure}");
        assert_eq!(record.payload()?, *data, "incomplete payload: {record:?}");
    }
    assert_eq!(
        stack.samples(neighbour.sensors[0], "").await?,
        [],
        "a record of the neighbour was stored"
    );
    Ok(())
}

#[tokio::test]
async fn a_breach_and_its_end_are_each_published_once() -> Result<()> {
    let stack = Stack::connect().await?;
    let limits = [("min", -15.0), ("max", 30.0)];
    let site = Site::with_limits(&stack, "breach", &[Metric::AirTemperature], &limits).await?;
    let capture = Capture::start(&stack).await?;
    let bundles = [
        site.bundle("1", &first_day("00:00:00"), &[20.0, 30.0, 30.5, 31.0])?,
        site.bundle("2", &first_day("00:04:00"), &[30.5, 29.6, 29.5, 29.0])?,
        site.bundle("3", &first_day("00:08:00"), &[-15.5, 31.0, 10.0])?,
    ];
    // Each is sent twice, the first one again after all others.
    for index in [0, 1, 1, 2, 2, 0] {
        send(&stack, &[&bundles[index]]).await?;
    }
    let breached = |value: f64, at: &str, limit: &str, threshold: f64| {
        let data = json!({
            "siteId": site.ids.site_id, "sensorId": site.sensors[0], "metric": "air_temperature",
            "unit": "Cel", "value": value, "at": at, "limit": limit, "threshold": threshold,
        });
        (ReadingBreachedThreshold::TYPE.to_owned(), data)
    };
    let back = |value: f64, at: &str, breached_at: &str| {
        let data = json!({
            "siteId": site.ids.site_id, "sensorId": site.sensors[0], "metric": "air_temperature",
            "unit": "Cel", "value": value, "at": at, "breachedAt": breached_at,
        });
        (ReadingBackToNormal::TYPE.to_owned(), data)
    };
    let expected = [
        breached(30.5, &first_day("00:02:00.000"), "max", 30.0),
        back(29.5, &first_day("00:06:00.000"), &first_day("00:02:00.000")),
        breached(-15.5, &first_day("00:08:00.000"), "min", -15.0),
        breached(31.0, &first_day("00:09:00.000"), "max", 30.0),
        back(10.0, &first_day("00:10:00.000"), &first_day("00:09:00.000")),
    ];
    let enough = |events: &[Value]| alerts(events, &site).len() >= expected.len();
    let captured = capture.take_all(&stack, TIMEOUT, enough).await?;
    assert_eq!(alerts(&captured, &site), expected);
    let onboarding = site.ids.onboarding_id.to_string();
    let site_events: Vec<_> =
        captured.iter().filter(|event| correlation(event) == onboarding).collect();
    let distinct: BTreeSet<_> = site_events.iter().map(|event| event_id(event)).collect();
    assert_eq!(distinct.len(), site_events.len(), "an event was delivered twice");

    let saga_events = log::published_saga_events(&stack, site.ids.onboarding_id).await?;
    assert_eq!(log::gaps(&saga_events), [""; 0]);
    let (breach, back) = (ReadingBreachedThreshold::TYPE, ReadingBackToNormal::TYPE);
    let expected = vec!["AlertingConfigured", breach, back, breach, breach, back];
    assert_eq!(log::by_entity(&saga_events).get("alerting"), Some(&expected));
    Ok(())
}

#[tokio::test]
async fn a_no_data_value_raises_no_alert_once_the_sensor_names_it() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature];
    let site = Site::with_limits(&stack, "no data", &metrics, &[("min", -15.0)]).await?;
    // The value is in the plausible range, so only `noDataValues` prevents an alert.
    let change = json!({ "noDataValues": [-99.9], "validFrom": null }).to_string();
    let path = format!("/sensors/{}", site.sensors[0]);
    let changed = stack.call(Call::patch(&path, change)).await?;
    assert_eq!(changed.status, 200, "{changed}");
    until("the rule to have the change", TIMEOUT, async || {
        let rows = stack.rows_with(names::ALERTING, "siteId", &site.key()).await?;
        let is_changed = rows.iter().any(|row| row.to_string().contains("noDataValues"));
        Ok(if is_changed { Poll::Ready(()) } else { Poll::Pending(format!("{rows:?}")) })
    })
    .await?;

    let capture = Capture::start(&stack).await?;
    send(&stack, &[&site.bundle("1", &first_day("00:00:00"), &[-99.9, 20.0, -20.0])?]).await?;
    let has_alert = |events: &[Value]| !alerts(events, &site).is_empty();
    let captured = capture.take_all(&stack, TIMEOUT, has_alert).await?;
    let values: Vec<_> =
        alerts(&captured, &site).into_iter().map(|(_, alert)| alert["value"].clone()).collect();
    assert_eq!(values, [-20.0]);
    Ok(())
}

/// Waits until the sensor is marked as retired in the register, and the cached entry of the active sensor has expired.
async fn wait_until_retired(stack: &Stack, sensor: SensorId) -> Result<()> {
    until("the sensor to be retired in the register", TIMEOUT, async || {
        let row = stack
            .dynamodb()
            .get_item()
            .table_name(stack.named(names::READINGS))
            .key("sensorId", AttributeValue::S(sensor.to_string()))
            .key("row", AttributeValue::S("SENSOR".to_owned()))
            .consistent_read(true)
            .send()
            .await?;
        let retired = row.item().is_some_and(|row| row.contains_key("retiredAt"));
        Ok(if retired { Poll::Ready(()) } else { Poll::Pending(format!("{row:?}")) })
    })
    .await?;
    // An active sensor is cached for two seconds on the local stack.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    Ok(())
}

#[tokio::test]
async fn new_readings_of_a_decommissioned_site_are_refused_and_raise_no_alert() -> Result<()> {
    let stack = Stack::connect().await?;
    let limits = [("max", 30.0)];
    let metrics = [Metric::AirTemperature];
    let site = Site::with_limits(&stack, "retired", &metrics, &limits).await?;
    let live = Site::with_limits(&stack, "still in service", &metrics, &limits).await?;
    let before = site.bundle("before", &first_day("00:00:00"), &[20.0])?;
    send(&stack, &[&before]).await?;
    site.samples(&stack, 1).await?;

    let response = stack.call(Call::delete(format!("/sites/{}", site.ids.site_id))).await?;
    assert_eq!(response.status, 202, "{response}");
    let undone = FORWARD.map(|step| (step, "UNDONE"));
    stack.wait_for_site(site.ids.site_id, "DECOMMISSIONED", &undone).await?;
    wait_until_retired(&stack, site.sensors[0]).await?;

    let capture = Capture::start(&stack).await?;
    let now = Timestamp::now();
    let after = site.bundle("after", &now.to_string(), &[40.0])?;
    let response = stack.call(Call::post_readings(serde_json::to_string(&after)?)).await?;
    assert_eq!(response.status, 410, "{response}");
    stack.put_record(&site.key(), serde_json::to_vec(&after)?).await?;
    // Then a reading of a live site with the same value is sent. When its alert is published, the first reading has
    // been processed.
    send(&stack, &[&live.bundle("live", &now.to_string(), &[40.0])?]).await?;
    let has_alert = |events: &[Value]| !alerts(events, &live).is_empty();
    let captured = capture.take_until(&stack, TIMEOUT, has_alert).await?;
    capture.stop(&stack).await?;
    assert_eq!(alerts(&captured, &live).len(), 1);
    assert_eq!(alerts(&captured, &site), []);

    let quarantined = stack.wait_for_quarantined(&site.key(), 1).await?;
    assert_eq!(quarantined.len(), 1);
    assert_eq!(quarantined[0].failure.error.name, "RetiredSensor", "{quarantined:?}");
    assert_eq!(serde_json::from_slice::<Bundle>(&quarantined[0].payload()?)?, after);
    // What was measured before is still accepted.
    let earlier = site.bundle("earlier", &first_day("00:01:00"), &[21.0])?;
    send(&stack, &[&earlier]).await?;
    assert_eq!(site.samples(&stack, 2).await?, samples_of(&[&before, &earlier]));
    let saga_events = log::published_saga_events(&stack, site.ids.onboarding_id).await?;
    let expected = vec!["AlertingConfigured", "AlertingRemoved"];
    assert_eq!(log::by_entity(&saga_events).get("alerting"), Some(&expected));
    Ok(())
}
