//! The error messages for invalid input of other systems.

use std::time::{Duration, Instant};

use contracts::{
    inbound::{KitsDelivered, SiteRegistration},
    input::{self, FieldError, MAX_PROBLEMS, join_errors},
};
use serde_json::json;

fn site(json: &str) -> Vec<FieldError> {
    input::read::<SiteRegistration>(json).expect_err("wrong input")
}

fn kits(json: &str) -> String {
    join_errors(&input::read::<KitsDelivered>(json).expect_err("wrong input"))
}

#[test]
fn literals_of_python_that_json_does_not_have_become_texts() {
    for (json, quoted) in [
        ("", ""),
        ("[1, null]", "[1, null]"),
        ("[NaN,-Infinity, Infinity]", r#"["NAN","-INF", "INF"]"#),
        (r#"{"NaN": ["a NaN", NaN]}"#, r#"{"NaN": ["a NaN", "NAN"]}"#),
        (r#"["a\"NaN", "\\", NaN, "ä NaN"]"#, r#"["a\"NaN", "\\", "NAN", "ä NaN"]"#),
        (r#""NaN"#, r#""NaN"#),
        ("ä NaN", "ä \"NAN\""),
    ] {
        assert_eq!(input::quote_non_numbers(json), quoted);
    }
}

#[test]
fn every_missing_wrong_and_unknown_field_is_named_at_once() {
    let body = json!({
        "operator": 7,
        "location": { "latitude": "37.7", "longitude": 181, "height": 3 },
        "sensors": [
            { "metric": "heat", "unit": "K" },
            { "metric": "wind_speed" },
            { "metric": "air_temperature", "unit": "degF", "min": 5, "max": 1 },
            [],
        ],
        "utcOffset": "America/Denver",
        "plan": "gold",
        "colour\u{1b}": "red",
    });
    let errors: Vec<_> = site(&body.to_string()).iter().map(ToString::to_string).collect();
    let metrics: Vec<_> = contracts::Metric::ALL.iter().map(|metric| metric.name()).collect();
    assert_eq!(
        errors,
        [
            r#""colour\u{1b}": is not known; the fields are name, operator, location, utcOffset, sensors, plan, paymentMethod"#,
            "name: is missing; give a string of 1 to 200 characters",
            "operator: is a number; give a string of 1 to 200 characters",
            "location.height: is not known; the fields are latitude, longitude, elevationM",
            "location.latitude: is a string; give degrees north from -90 to 90",
            "location.longitude: is 181; give degrees east from -180 to 180",
            "location.elevationM: is missing; give metres above sea level from -500 to 9000",
            "utcOffset: is \"America/Denver\"; give Z, or an offset from -12:00 to +14:00 such as +01:00",
            &format!("sensors[0].metric: is \"heat\"; give one of {}", metrics.join(", ")),
            "sensors[1].unit: is missing; give m/s (UCUM), for wind_speed",
            "sensors[2].unit: is \"degF\"; give Cel or K (UCUM), for air_temperature",
            "sensors[2].min: is 5; it must be below max, which is 1",
            "sensors[3]: is an array; give an object with the fields metric, unit, min, max, label, kind, stamp, reportEverySeconds, heightM, datum, resolution, detectionLimit, counter, externalIds, intervalSeconds, noDataValues, calibration",
            "plan: is \"gold\"; give one of community, standard, professional",
            "paymentMethod: is missing; give a string of 1 to 255 letters, digits, _ and -",
        ]
    );
}

#[test]
fn text_that_is_not_json_has_one_error() {
    for (json, line) in [
        ("", "is empty; give an object with the fields deliveryId, kits"),
        (" \n", "is empty; give an object with the fields deliveryId, kits"),
        ("{", "is not JSON: EOF while parsing an object at line 1 column 1"),
        ("{} {}", "is not JSON: trailing characters at line 1 column 4"),
        ("\u{feff}{}", "begins with a byte order mark; send the JSON without it"),
        (r#""D-1""#, "is a string; give an object with the fields deliveryId, kits"),
        (r#"["D-1", []]"#, "is an array; give an object with the fields deliveryId, kits"),
    ] {
        assert_eq!(kits(json), line, "{json:?}");
    }
}

#[test]
fn a_number_that_is_out_of_range_is_named() {
    for (number, problem) in [
        ("1e999", "too large"),
        ("-1e999", "too large"),
        ("1e-400", "too close to 0"),
        (&format!("0.{}1", "0".repeat(400)), "too close to 0"),
    ] {
        let kit = format!(r#"{{"metric": "wind_speed", "quantity": {number}}}"#);
        let line = kits(&format!(r#"{{"deliveryId": "1e-400, 1", "kits": [{kit}]}}"#));
        let expected = format!("kits[0].quantity: is a number that is {problem} to be read; give ");
        assert!(line.starts_with(&expected), "{line}");
    }
}

#[test]
fn json_that_is_nested_too_deeply_is_refused_whatever_its_numbers() {
    for number in ["1", "1e999", "1e-400"] {
        let nested = |levels| format!("{}{number}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(kits(&nested(127)).starts_with("is an array; give "), "{number}");
        for levels in [128, 500_000] {
            let line = kits(&nested(levels));
            assert!(line.starts_with("is not JSON: recursion limit exceeded"), "{number}: {line}");
        }
        // The number is outside.
        let line = kits(&format!("[{number}, {}]", nested(127)));
        assert!(line.starts_with("is not JSON: recursion limit exceeded"), "{number}: {line}");
    }
}

#[test]
fn a_long_text_that_looks_like_numbers_is_read_in_linear_time() {
    let started = Instant::now();
    for id in ["e-".repeat(100_000), "0".repeat(200_000), "e- ".repeat(70_000)] {
        let line = kits(&format!(r#"{{"deliveryId": "{id}", "kits": []}}"#));
        assert!(line.starts_with("deliveryId: "), "{line}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn a_duplicate_field_is_refused() {
    let kit = r#"[{"metric": "wind_speed", "quantity": 1}]"#;
    let twice = format!(r#"{{"deliveryId": "D-1", "deliveryId": "D-2", "kits": {kit}}}"#);
    assert_eq!(kits(&twice), "deliveryId: is a duplicate; give it once");
    assert!(input::read::<KitsDelivered>(&twice.replace(r#""deliveryId": "D-2", "#, "")).is_ok());
}

#[test]
fn a_whole_number_may_have_a_fraction_of_zero() {
    let of = |quantity: &str| {
        let kit = format!(r#"{{"metric": "wind_speed", "quantity": {quantity}}}"#);
        let json = format!(r#"{{"deliveryId": "D-1", "kits": [{kit}]}}"#);
        input::read::<KitsDelivered>(&json).map(|delivery| delivery.kits[0].quantity)
    };
    assert_eq!(of("1"), Ok(1));
    assert_eq!(of("2.0"), Ok(2));
    assert_eq!(of("1e6"), Ok(1_000_000));
    for wrong in ["0", "-1", "1.5", "1000001", "1e126", "true", "null", "\"1\""] {
        assert_eq!(of(wrong).expect_err(wrong)[0].field, "kits[0].quantity", "{wrong}");
    }
}

#[test]
fn a_confidential_value_is_not_quoted() {
    let body = json!({ "paymentMethod": "pm_secret!" }).to_string();
    let line = join_errors(&site(&body));
    assert!(line.contains("paymentMethod: ") && !line.contains("secret"), "{line}");
}

#[test]
fn a_quotation_in_a_message_is_short_and_escaped() {
    let long = "\u{1b}".repeat(10_000);
    let body = json!({ "plan": long, long.clone(): 1 }).to_string();
    for error in site(&body) {
        let length = error.field.len() + error.message.len();
        assert!(length < 1_000 && !error.to_string().contains('\u{1b}'), "{error}");
    }
}

#[test]
fn problems_beyond_the_limit_are_only_counted() {
    let sensor = json!({ "metric": "wind_speed", "unit": "kn", "min": "a", "max": "b" });
    let errors = site(&json!({ "sensors": vec![sensor; 100] }).to_string());
    assert_eq!(errors.len(), MAX_PROBLEMS + 1);
    // 300 in the sensors, and five missing fields.
    let last = FieldError::new("", "has 205 more problems; correct these first");
    assert_eq!(errors.last(), Some(&last));
}
