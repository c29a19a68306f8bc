//! The names and numbers that other systems see: the sources on the bus, ids of bundles, and how many
//! series a bundle has.

use contracts::{
    EntityType, OnboardingId, PaymentMethodId, Plan, SensorId, SiteId, Timestamp,
    readings::{Bundle, BundleId, MOST_AHEAD_MILLIS, MOST_SERIES, Sample, Series},
};

#[test]
fn each_entity_has_its_services_source() {
    use EntityType::{Alerting, Reservation, Sensors, Site, Subscription};
    for (entity, source) in [
        (Site, "fieldstation.sites"),
        (Reservation, "fieldstation.inventory"),
        (Sensors, "fieldstation.devices"),
        (Subscription, "fieldstation.billing"),
        (Alerting, "fieldstation.alerting"),
    ] {
        assert_eq!(entity.source(), source);
    }
}

#[test]
fn a_plan_is_called_what_it_reads_as() {
    for plan in [Plan::Community, Plan::Standard, Plan::Professional] {
        assert_eq!(serde_json::json!(plan), plan.name());
    }
}

#[test]
fn a_payment_method_is_named_and_not_shown() {
    let shown = format!("{:?}", PaymentMethodId("pm_1MqLiJLkdIwHu7ix".to_owned()));
    assert!(shown.contains("PaymentMethodId") && !shown.contains("pm_1"), "{shown}");
}

#[test]
fn a_time_shows_in_logs_as_on_the_wire() {
    let time = Timestamp::from_millis(NOON);
    assert_eq!(format!("{time:?}"), "2026-11-21T12:00:00.000Z");
}

#[test]
fn a_bundles_id_is_told_as_it_was_given() {
    let id: BundleId = "2016-01-01T00:00+b.7_x".parse().expect("an id");
    assert_eq!(id.as_str(), "2016-01-01T00:00+b.7_x");
    assert_eq!(id.to_string(), id.as_str());
    assert_eq!(format!("{id:?}"), "BundleId(2016-01-01T00:00+b.7_x)");
}

const NOON: i64 = 1_795_262_400_000;

/// A bundle of so many series, each with samples at these times.
fn bundle(series: usize, millis: &[i64]) -> Bundle {
    let site_id = SiteId::registered("test", "series");
    let samples: Vec<_> =
        millis.iter().map(|at| Sample(Timestamp::from_millis(*at), 1.0)).collect();
    Bundle {
        bundle_id: "b".parse().expect("an id"),
        site_id,
        series: (0..series)
            .map(|index| Series {
                sensor_id: SensorId::of(OnboardingId::of(site_id), index),
                samples: samples.clone(),
            })
            .collect(),
    }
}

/// The field that is wrong.
fn wrong(bundle: &Bundle) -> Option<String> {
    bundle.check(Timestamp::from_millis(NOON)).err().map(|errors| errors[0].field.clone())
}

#[test]
fn a_bundle_has_as_many_series_as_the_contract_says() {
    for series in [1, 2, MOST_SERIES] {
        assert_eq!(wrong(&bundle(series, &[NOON])), None, "{series}");
    }
    for series in [0, MOST_SERIES + 1] {
        assert_eq!(wrong(&bundle(series, &[NOON])).as_deref(), Some("series"), "{series}");
    }
    assert_eq!(bundle(3, &[NOON, NOON + 1]).samples(), 6);
}

#[test]
fn a_sample_is_between_1970_and_a_quarter_of_an_hour_ahead_and_after_the_one_before() {
    let newest = NOON + MOST_AHEAD_MILLIS;
    assert_eq!(wrong(&bundle(1, &[0, 1, NOON, newest])), None);
    for (millis, at) in [
        (&[-1][..], "series[0].samples[0]"),
        (&[0, newest + 1], "series[0].samples[1]"),
        (&[NOON, NOON], "series[0].samples[1]"),
        (&[NOON, NOON - 1], "series[0].samples[1]"),
    ] {
        assert_eq!(wrong(&bundle(1, millis)).as_deref(), Some(at), "{millis:?}");
    }
}
