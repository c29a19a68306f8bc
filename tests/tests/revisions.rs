//! Tests corrections, changed sensors, growing bundles, flags, imports and readings that come too early, from the producer to the query on
//! the deployed stack. Each test has its own site.

use anyhow::{Result, bail};
use contracts::{
    Event, Metric, OnboardingId, OperatorId, SensorId, SiteId, Timestamp,
    events::{ReadingBreachedThreshold, ReadingsRevised},
    readings::{Bundle, MAX_AHEAD_MILLIS, Origin, Series, TimeRange},
    sample::{Flag, Sample},
};
use serde_json::{Value, json};
use tests::{
    Stack,
    api::Call,
    capture::{Capture, correlation},
    data_logger::send,
    log,
    readings::{first_day, second_day},
    sending::{Site, alerts, minutes, revised, samples_of},
    sites::{GOOD_CARD, registration},
    wait::{Poll, TIMEOUT, until},
};
use uuid::Uuid;

/// Returns a range of the first day.
fn range(from: &str, to: &str) -> Result<TimeRange> {
    Ok(TimeRange { from: first_day(from).parse()?, to: first_day(to).parse()? })
}

/// Waits until a sensor has exactly these samples.
async fn wait_for_samples(stack: &Stack, sensor: SensorId, expected: &[Sample]) -> Result<()> {
    until(&format!("{} samples of a revision", expected.len()), TIMEOUT, async || {
        let samples = stack.samples(sensor, "limit=10000").await?;
        Ok(if samples == expected {
            Poll::Ready(())
        } else {
            Poll::Pending(format!("{samples:?}"))
        })
    })
    .await
}

/// Returns the data of the events `ReadingsRevised` of a site, in the order of their sequence.
fn revision_events(captured: &[Value], onboarding: OnboardingId) -> Vec<Value> {
    let onboarding = onboarding.to_string();
    let mut events: Vec<_> = captured
        .iter()
        .filter(|event| correlation(event) == onboarding)
        .filter(|event| event["detail-type"] == ReadingsRevised::TYPE)
        .collect();
    events.sort_by_key(|event| event["detail"]["metadata"]["sequence"].as_u64());
    events.into_iter().map(|event| event["detail"]["data"].clone()).collect()
}

#[tokio::test]
async fn a_clock_that_was_an_hour_fast_is_corrected_and_a_part_is_withdrawn() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature, Metric::AirPressure];
    let site = Site::with_limits(&stack, "fast clock", &metrics, &[]).await?;
    let [sensor, late_sensor] = site.sensors[..] else { bail!("{site:?}") };
    let capture = Capture::start(&stack).await?;
    let values: Vec<f64> = (0..60).map(f64::from).collect();
    let original = site.bundle("hour", &first_day("10:00:00"), &values)?;
    let corrected = minutes(first_day("09:00:00").parse()?, &values);
    let reason = "The logger's clock was an hour fast.";
    let hour = range("10:00:00", "11:00:00")?;
    let correction = revised(&original, 2, reason, hour, &corrected);

    send(&stack, &[&original]).await?;
    wait_for_samples(&stack, sensor, &original.series[0].samples).await?;
    let tag = stack.readings(sensor, "").await?.header("etag").to_owned();
    send(&stack, &[&correction]).await?;
    wait_for_samples(&stack, sensor, &corrected).await?;
    let changed = stack.readings(sensor, "").await?;
    assert_ne!(changed.header("etag"), tag);
    // Neither the original nor another late bundle of the first revision comes back. The last bundle is stored after them.
    let late = site.bundle("late", &first_day("10:30:00"), &[99.0])?;
    let last = site.bundle("last", &first_day("12:00:00"), &[5.0])?;
    for bundle in [&original, &correction, &late, &last] {
        send(&stack, &[bundle]).await?;
    }
    let all = [corrected.clone(), samples_of(&[&last])].concat();
    wait_for_samples(&stack, sensor, &all).await?;

    // Half of the hour is withdrawn.
    let half = range("09:30:00", "10:00:00")?;
    let retraction = revised(&original, 3, "The shield was open.", half, &[]);
    send(&stack, &[&retraction]).await?;
    let rest = [corrected[..30].to_vec(), samples_of(&[&last])].concat();
    wait_for_samples(&stack, sensor, &rest).await?;

    // The other sensor gets the correction first.
    for bundle in [&correction, &original] {
        let mut bundle = bundle.clone();
        bundle.bundle_id = "pressure".parse()?;
        bundle.series[0].sensor_id = late_sensor;
        send(&stack, &[&bundle]).await?;
    }
    let mut last = last;
    last.series[0].sensor_id = late_sensor;
    send(&stack, &[&last]).await?;
    wait_for_samples(&stack, late_sensor, &all).await?;

    let listed = stack.revisions(sensor, "limit=1").await?;
    let [second, third] = &listed[..] else { bail!("{listed:?}") };
    assert_eq!((&second.bundle_id, &second.reason), (&original.bundle_id, &reason.to_owned()));
    assert_eq!((second.revision, second.samples), (2, 60));
    assert_eq!(second.replaces, Some(hour));
    let (first, end) = (corrected[0].at, corrected[59].at.plus_millis(1));
    assert_eq!((second.from, second.to), (Some(first), Some(end)));
    assert_eq!((third.revision, third.samples, third.from, third.to), (3, 0, None, None));
    assert_eq!(third.replaces, Some(half));
    let of_late = stack.revisions(late_sensor, "").await?;
    assert_eq!(of_late.iter().map(|it| it.revision).collect::<Vec<_>>(), [2]);

    // Each revision is published once.
    let onboarding = site.ids.onboarding_id;
    let enough = |events: &[Value]| revision_events(events, onboarding).len() >= 3;
    let captured = capture.take_all(&stack, TIMEOUT, enough).await?;
    let mut events = revision_events(&captured, onboarding);
    events.retain(|event| event["sensorId"] == json!(sensor));
    let data = |kind: &str, revision: u32, reason: &str, from: &str, to: &str| {
        json!({
            "siteId": site.ids.site_id, "sensorId": sensor, "kind": kind,
            "from": first_day(from), "to": first_day(to),
            "bundleId": "hour", "revision": revision, "reason": reason,
        })
    };
    let expected = [
        data("value", 2, reason, "09:00:00.000", "11:00:00.000"),
        data("retraction", 3, "The shield was open.", "09:30:00.000", "10:00:00.000"),
    ];
    assert_eq!(events, expected);
    assert_eq!(revision_events(&captured, onboarding).len(), 3);
    let logged = log::published_saga_events(&stack, onboarding).await?;
    assert_eq!(log::gaps(&logged), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_changed_sensor_revises_its_stored_readings() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::with_limits(&stack, "calibrated", &[Metric::AirTemperature], &[]).await?;
    let sensor = site.sensors[0];
    let capture = Capture::start(&stack).await?;
    let start: Timestamp = first_day("10:00:00").parse()?;
    let bundle = site.bundle("hour", &first_day("10:00:00"), &[10.0, 20.0, 30.0])?;
    send(&stack, &[&bundle]).await?;
    wait_for_samples(&stack, sensor, &bundle.series[0].samples).await?;
    let query = |values: &str| Call::get(format!("/sensors/{sensor}/readings?values={values}"));
    let [raw, calibrated] =
        [stack.call(query("raw")).await?, stack.call(query("calibrated")).await?];
    for (values, page) in [("raw", &raw), ("calibrated", &calibrated)] {
        let known = stack.call(query(values).if_none_match(page.header("etag"))).await?;
        assert_eq!(known.status, 304, "{values}: {known}");
    }

    let before = Timestamp::now();
    let change = async |change: Value| {
        let call = Call::patch(format!("/sensors/{sensor}"), change.to_string());
        let response = stack.call(call).await?;
        anyhow::ensure!(response.status == 200, "{response}");
        anyhow::Ok(())
    };
    change(json!({
        "calibration": { "gain": 2.0, "offset": 1.0 }, "validFrom": first_day("10:01:00"),
    }))
    .await?;
    wait_for_samples(&stack, sensor, &minutes(start, &[10.0, 41.0, 61.0])).await?;
    for (values, page) in [("raw", &raw), ("calibrated", &calibrated)] {
        let changed = stack.call(query(values).if_none_match(page.header("etag"))).await?;
        assert_eq!(changed.status, 200, "{values}: {changed}");
        assert_eq!(changed.body == raw.body, values == "raw", "{changed}");
    }

    // A change of the label emits no `ReadingsRevised`. Then the calibration ends. Then 10.0 becomes a no-data value.
    change(json!({ "label": "Mast, 2 m" })).await?;
    change(json!({
        "calibration": { "gain": 1, "offset": 0 }, "validFrom": first_day("10:02:00"),
    }))
    .await?;
    wait_for_samples(&stack, sensor, &minutes(start, &[10.0, 41.0, 30.0])).await?;
    change(json!({ "noDataValues": [10.0], "validFrom": null })).await?;
    wait_for_samples(&stack, sensor, &minutes(start, &[10.0, 41.0, 30.0])[1..]).await?;
    assert_eq!(stack.revisions(sensor, "").await?.len(), 0, "they are no revisions of a bundle");

    let onboarding = site.ids.onboarding_id;
    let enough = |events: &[Value]| revision_events(events, onboarding).len() >= 3;
    let captured = capture.take_all(&stack, TIMEOUT, enough).await?;
    let events = revision_events(&captured, onboarding);
    let starts: Vec<_> = events.iter().map(|event| (&event["kind"], &event["from"])).collect();
    assert_eq!(
        starts,
        [
            (&json!("calibration"), &json!(first_day("10:01:00.000"))),
            (&json!("calibration"), &json!(first_day("10:02:00.000"))),
            (&json!("flag"), &json!("1970-01-01T00:00:00.000Z")),
        ]
    );
    // The range of each event ends after the last reading that could be stored at the time of the change.
    let [earliest, latest] =
        [before, Timestamp::now()].map(|at| at.plus_millis(MAX_AHEAD_MILLIS + 1));
    for event in &events {
        let to: Timestamp = event["to"].as_str().unwrap_or_default().parse()?;
        assert!((earliest..=latest).contains(&to), "{event}");
        assert_eq!(event["sensorId"], json!(sensor));
    }
    let logged = log::published_saga_events(&stack, onboarding).await?;
    assert_eq!(log::gaps(&logged), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn a_bundle_that_grows_is_stored_sample_by_sample_and_alerts_once() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature];
    let site = Site::with_limits(&stack, "growing", &metrics, &[("max", 30.0)]).await?;
    let capture = Capture::start(&stack).await?;
    // The values cross the limit in the second version of the bundle.
    let values: Vec<f64> = (0..96).map(|index| if index < 6 { 20.0 } else { 31.0 }).collect();
    let day = |count: usize| site.bundle("day", &first_day("00:00:00"), &values[..count]);
    for count in [4, 8, 12, 96] {
        send(&stack, &[&day(count)?]).await?;
        assert_eq!(site.samples(&stack, count).await?, samples_of(&[&day(count)?]));
    }
    let rows = stack.series_rows(site.sensors[0]).await?;
    assert_eq!(
        rows.len(),
        4,
        "each version of the bundle adds its new samples as one row: {rows:?}"
    );

    // The same version and an earlier one are repeats. The last bundle is stored after them.
    send(&stack, &[&day(96)?]).await?;
    send(&stack, &[&day(8)?]).await?;
    let last = site.bundle("last", &first_day("02:00:00"), &[31.0])?;
    send(&stack, &[&last]).await?;
    assert_eq!(site.samples(&stack, 97).await?, samples_of(&[&day(96)?, &last]));
    let after = stack.series_rows(site.sensors[0]).await?;
    assert_eq!(after[..4], rows, "a repeat was written");

    let has_alert = |events: &[Value]| !alerts(events, &site).is_empty();
    let captured = capture.take_all(&stack, TIMEOUT, has_alert).await?;
    let alerts = alerts(&captured, &site);
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0].1["at"], first_day("00:06:00.000"), "{alerts:?}");
    Ok(())
}

#[tokio::test]
async fn queries_count_samples_by_their_flags() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "flags").await?;
    let sensor = site.sensors[0];
    let at = |minute: u32| first_day(&format!("12:{minute:02}:00.000"));
    let sent = json!({
        "bundleId": "flags", "siteId": site.ids.site_id,
        "series": [{ "sensorId": sensor, "samples": [
            [at(0), 5, 1], [at(1), null, 9], [at(2), 1400, 4], [at(3), 600, 3, ["cloud edge"]],
        ] }],
    });
    let response = stack.call(Call::post_readings(sent.to_string())).await?;
    assert_eq!(response.status, 202, "{response}");
    site.samples(&stack, 2).await?;

    let [good, missing, failed, suspect] = [
        json!([at(0), 5.0, 1, []]),
        json!([at(1), null, 9, []]),
        json!([at(2), 1400.0, 4, []]),
        json!([at(3), 600.0, 3, ["cloud edge"]]),
    ];
    for (query, expected) in [
        ("flags=true&quality=all", json!([good, missing, failed, suspect])),
        ("flags=true", json!([good, suspect])),
        ("flags=true&quality=good", json!([good])),
        ("quality=usable", json!([[at(0), 5.0], [at(3), 600.0]])),
        ("", json!([[at(0), 5.0], [at(3), 600.0]])),
    ] {
        let response = stack.readings(sensor, query).await?;
        assert_eq!(response.body["samples"], expected, "{query}: {response}");
    }
    for (quality, count, mean) in [("good", 1, 5.0), ("usable", 2, 302.5), ("all", 3, 2005.0 / 3.0)]
    {
        let buckets = stack.buckets(sensor, &format!("aggregate=hour&quality={quality}")).await?;
        let counted: Vec<_> = buckets.iter().map(|hour| (hour.count, hour.mean)).collect();
        assert_eq!(counted, [(count, Some(mean))], "{quality}");
    }

    // A value with the flag "missing", no value with the flag "pass", and an unknown flag.
    for (sample, field) in [
        (json!([at(4), 5, 9]), "series[0].samples[0][2]"),
        (json!([at(4), null, 1]), "series[0].samples[0][2]"),
        (json!([at(4), 5, 7]), "series[0].samples[0][2]"),
    ] {
        let mut bad = sent.clone();
        bad["series"][0]["samples"] = json!([sample]);
        let response = stack.call(Call::post_readings(bad.to_string())).await?;
        assert_eq!((response.status, response.fields()), (400, vec![field]), "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn one_bad_value_refuses_its_series_and_no_other() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature, Metric::AirPressure];
    let site = Site::with_limits(&stack, "one bad value", &metrics, &[]).await?;
    let [good, bad] = site.sensors[..] else { bail!("{site:?}") };
    let at = first_day("00:00:00.000");
    // A leap second is refused, and so is a number that a double can't distinguish from 0.
    for (number, sample) in
        [format!(r#"["{}", 1]"#, first_day("23:59:60")), format!(r#"["{at}", 1e-400]"#)]
            .iter()
            .enumerate()
    {
        let time = first_day(&format!("00:0{number}:00.000"));
        let body = format!(
            r#"{{"bundleId": "b{number}", "siteId": "{}", "series": [
                {{"sensorId": "{bad}", "samples": [{sample}]}},
                {{"sensorId": "{good}", "samples": [["{time}", {number}]]}}]}}"#,
            site.ids.site_id
        );
        let response = stack.call(Call::post_readings(body)).await?;
        assert_eq!((response.status, &response.body["accepted"]), (202, &json!(1)), "{response}");
        let fields = response.fields();
        assert!(fields.len() == 1 && fields[0].starts_with("series[0].samples[0]"), "{response}");
    }
    let expected = minutes(first_day("00:00:00").parse()?, &[0.0, 1.0]);
    wait_for_samples(&stack, good, &expected).await?;
    assert_eq!(stack.samples(bad, "").await?, []);
    Ok(())
}

#[tokio::test]
async fn an_import_is_stored_whatever_its_age_and_raises_no_alert() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature];
    let site = Site::with_limits(&stack, "import", &metrics, &[("max", 30.0)]).await?;
    let capture = Capture::start(&stack).await?;
    let mut import = site.bundle("import", "2019-06-01T12:00:00Z", &[40.0, 20.0, 41.0])?;
    import.origin = Origin::Import;
    send(&stack, &[&import]).await?;
    let live = site.bundle("live", &second_day("12:00:00"), &[35.0])?;
    send(&stack, &[&live]).await?;
    assert_eq!(site.samples(&stack, 4).await?, samples_of(&[&import, &live]));

    let has_alert = |events: &[Value]| !alerts(events, &site).is_empty();
    let captured = capture.take_all(&stack, TIMEOUT, has_alert).await?;
    let alerts = alerts(&captured, &site);
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0].0, ReadingBreachedThreshold::TYPE);
    assert_eq!(alerts[0].1["at"], second_day("12:00:00.000"), "{alerts:?}");
    Ok(())
}

#[tokio::test]
async fn readings_of_a_clock_that_was_not_set_are_quarantined() -> Result<()> {
    let stack = Stack::connect().await?;
    let site = Site::new(&stack, "clock").await?;
    for start in ["1970-01-01T00:00:03Z", "2019-06-01T12:00:00Z"] {
        let old = site.bundle("old", start, &[20.0])?;
        stack.put_record(&site.key(), serde_json::to_vec(&old)?).await?;
    }
    let quarantined = stack.wait_for_quarantined(&site.key(), 2).await?;
    for record in &quarantined {
        let failure = &record.failure;
        assert!(failure.error.message.contains("set the clock"), "{failure}");
    }
    assert_eq!(stack.samples(site.sensors[0], "quality=all").await?, []);
    Ok(())
}

/// The bundles are sent even before the site is registered. The test knows the site's ids, because they are derived
/// from the idempotency key of its registration.
#[tokio::test]
async fn readings_that_come_before_their_sensor_is_registered_are_stored() -> Result<()> {
    let stack = Stack::connect().await?;
    let metrics = [Metric::AirTemperature];
    stack.deliver(&metrics, 1).await?;
    let key = Uuid::new_v4().to_string();
    let site_id = SiteId::registered(OperatorId::DEFAULT, "", &key);
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site_id), 0);
    let values = [1.0, 2.0, 3.0, 4.0];
    let samples = minutes(first_day("10:00:00").parse()?, &values);
    let bundle = |count: usize| {
        let series = vec![Series::new(sensor, samples[..count].to_vec())];
        anyhow::Ok(Bundle::new("early".parse()?, site_id, series))
    };
    let corrected = vec![Sample::flagged(samples[1].at, 2.5, Flag::Pass)];
    let minute = range("10:01:00", "10:02:00")?;
    let correction = revised(&bundle(4)?, 2, "A typing error.", minute, &corrected);
    for bundle in [&bundle(2)?, &bundle(4)?, &correction, &correction] {
        stack.put_record(&site_id.to_string(), serde_json::to_vec(bundle)?).await?;
    }
    // Records with one key are processed in order. When this one is quarantined, the others are on hold.
    stack.put_record(&site_id.to_string(), b"no bundle".to_vec()).await?;
    stack.wait_for_quarantined(&site_id.to_string(), 1).await?;

    let name = format!("early {}", Uuid::new_v4().simple());
    let ids = stack.register(&key, &registration(&name, &metrics, GOOD_CARD)).await?;
    assert_eq!(ids.site_id, site_id);
    let site = Site::onboarded(&stack, ids).await?;
    assert_eq!(site.sensors, [sensor]);
    let expected = [&samples[..1], &corrected, &samples[2..]].concat();
    until("the early readings to be stored", TIMEOUT, async || {
        let stored = stack.samples(sensor, "flags=true").await?;
        Ok(if stored == expected { Poll::Ready(()) } else { Poll::Pending(format!("{stored:?}")) })
    })
    .await?;
    let quarantined = stack.wait_for_quarantined(&site.key(), 1).await?;
    assert_eq!(quarantined.len(), 1, "{quarantined:?}");
    Ok(())
}
