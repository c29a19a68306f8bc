//! Names and limits that other systems see: the sources on the bus, ids of bundles, and the number of series in a
//! bundle.

use contracts::{
    EntityType, OnboardingId, OperatorId, PaymentMethodId, Plan, SensorId, SiteId, Timestamp,
    readings::{Bundle, BundleId, MAX_AHEAD_MILLIS, MAX_SERIES, Series},
    sample::Sample,
};

#[test]
fn each_entity_has_the_source_of_its_service() {
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
fn a_plan_has_the_same_name_in_json_and_in_rust() {
    for plan in [Plan::Community, Plan::Standard, Plan::Professional] {
        assert_eq!(serde_json::json!(plan), plan.name());
    }
}

#[test]
fn debug_output_hides_a_payment_method() {
    let shown = format!("{:?}", PaymentMethodId("pm_1MqLiJLkdIwHu7ix".to_owned()));
    assert!(shown.contains("PaymentMethodId") && !shown.contains("pm_1"), "{shown}");
}

#[test]
fn debug_output_of_a_time_is_its_json_form() {
    let time = Timestamp::from_millis(NOON);
    assert_eq!(format!("{time:?}"), "2026-11-21T12:00:00.000Z");
}

#[test]
fn a_bundle_id_keeps_its_text() {
    let id: BundleId = "2016-01-01T00:00+b.7_x".parse().expect("an id");
    assert_eq!(id.as_str(), "2016-01-01T00:00+b.7_x");
    assert_eq!(id.to_string(), id.as_str());
    assert_eq!(format!("{id:?}"), "BundleId(2016-01-01T00:00+b.7_x)");
}

const NOON: i64 = 1_795_262_400_000;

/// Returns a bundle with this number of series, each with samples at these times.
fn bundle(series: usize, millis: &[i64]) -> Bundle {
    let site_id = SiteId::registered(OperatorId::DEFAULT, "test", "series");
    let samples: Vec<_> =
        millis.iter().map(|at| Sample::new(Timestamp::from_millis(*at), 1.0)).collect();
    let sensor = |index| SensorId::from_onboarding(OnboardingId::from_site(site_id), index);
    let series = (0..series).map(|index| Series::new(sensor(index), samples.clone())).collect();
    Bundle::new("b".parse().expect("an id"), site_id, series)
}

/// Returns the invalid field.
fn wrong(bundle: &Bundle) -> Option<String> {
    bundle.check(Timestamp::from_millis(NOON)).err().map(|errors| errors[0].field.clone())
}

#[test]
fn a_bundle_has_1_to_100_series() {
    for series in [1, 2, MAX_SERIES] {
        assert_eq!(wrong(&bundle(series, &[NOON])), None, "{series}");
    }
    for series in [0, MAX_SERIES + 1] {
        assert_eq!(wrong(&bundle(series, &[NOON])).as_deref(), Some("series"), "{series}");
    }
    assert_eq!(bundle(3, &[NOON, NOON + 1]).samples(), 6);
}

#[test]
fn samples_are_from_1970_or_later_in_order_and_at_most_15_minutes_ahead() {
    let newest = NOON + MAX_AHEAD_MILLIS;
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
