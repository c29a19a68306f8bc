//! Tests of parsing the bundle of a record: valid bundles are returned unchanged, and no input causes a panic.

use std::{cell::RefCell, io::Write, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use contracts::{
    OnboardingId, OperatorId, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series},
    sample::Sample,
    stream::{Data, Record, partition_key},
};
use fault::InvalidInput;
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use lambda::Deadline;
use proptest::{collection::vec, num, prelude::*, test_runner::RngSeed};
use serde_json::{json, value::to_raw_value};
use stream::{MAX_BUNDLE_BYTES, SentBundle, bundle, consume, pack};

const NOW: &str = "2026-01-01T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn site() -> SiteId {
    SiteId::registered(OperatorId::DEFAULT, "", "stream")
}

fn record(data: &str) -> Record<'_> {
    Record {
        kinesis: Data {
            partition_key: site().to_string().into(),
            sequence_number: "1".into(),
            data: data.into(),
            approximate_arrival_timestamp: 0.0,
        },
        event_id: "".into(),
        source_arn: "".into(),
        part: None,
    }
}

fn read(data: &[u8]) -> Result<Bundle, InvalidInput> {
    let sent = bundle(&record(&STANDARD.encode(data)), now())?;
    Ok(sent.bundle)
}

fn refused(data: &[u8]) -> InvalidInput {
    read(data).expect_err("not a bundle")
}

fn plain(bundle: &Bundle) -> Vec<u8> {
    serde_json::to_vec(bundle).expect("JSON")
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(data).expect("gzip");
    gzip.finish().expect("gzip")
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let value = num::f64::NORMAL | num::f64::SUBNORMAL | num::f64::ZERO;
    let value =
        (value, any::<bool>()).prop_map(|(value, minus)| if minus { -value } else { value });
    (0..1_700_000_000_000_i64, vec((1..10_000_000_i64, value), 1..30)).prop_map(|(start, steps)| {
        let mut at = start;
        let sample = |(step, value)| {
            at += step;
            Sample::new(Timestamp::from_millis(at), value)
        };
        steps.into_iter().map(sample).collect()
    })
}

fn bundles() -> impl Strategy<Value = Bundle> {
    ("[A-Za-z0-9._:+-]{1,64}", vec(samples(), 1..5)).prop_map(|(id, all)| {
        let sensor = |n| SensorId::from_onboarding(OnboardingId::from_site(site()), n);
        let series = (0..).zip(all).map(|(n, samples)| Series::new(sensor(n), samples));
        Bundle::new(id.parse().expect("a bundle id"), site(), series.collect())
    })
}

/// Returns the samples with the bits of their values, because `==` does not distinguish -0 from 0.
fn bits(bundle: &Bundle) -> Vec<(SensorId, i64, u64)> {
    let bits_of = |series: &Series| {
        let sensor = series.sensor_id;
        let bits = series.samples.iter().map(move |sample| {
            (sensor, sample.at.millis(), sample.value.expect("a value").to_bits())
        });
        bits.collect::<Vec<_>>()
    };
    bundle.series.iter().flat_map(bits_of).collect()
}

#[test]
fn a_record_with_a_value_that_json_can_not_express_is_read() {
    let at = now().plus_millis(-60_000);
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0);
    let series = Series::new(sensor, vec![Sample::missing(at), Sample::new(now(), 1.5)]);
    let expected = Bundle::new("b-1".parse().expect("an id"), site(), vec![series]);
    let json = String::from_utf8(plain(&expected)).expect("text").replace("null", "NaN");
    assert!(json.contains(",NaN]"), "{json}");
    assert_eq!(read(json.as_bytes()), Ok(expected.clone()));
    assert_eq!(read(&gzip(json.as_bytes())), Ok(expected));
}

#[test]
fn json_that_is_packed_is_read_again_unless_it_is_too_large() {
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0);
    let series = Series::new(sensor, vec![Sample::new(now(), 1.5)]);
    let bundle = Bundle::new("b-1".parse().expect("an id"), site(), vec![series]);
    let mut json = plain(&bundle);
    json.resize(MAX_BUNDLE_BYTES, b' ');
    assert_eq!(read(&pack(&json).expect("gzip")), Ok(bundle));
    json.push(b' ');
    assert!(pack(&json).is_err());
}

fn has_reason(error: &InvalidInput) -> bool {
    !error.at.is_empty() && (5..2_000).contains(&error.problem.len())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_bundle_is_read_back_bit_for_bit_plain_and_compressed(bundle in bundles()) {
        let json = plain(&bundle);
        // Concatenated gzip members are one gzip stream.
        let (start, end) = json.split_at(json.len() / 3);
        let members = [gzip(start), gzip(end)].concat();
        for data in [gzip(&json), members, json] {
            let read = read(&data).expect("a bundle");
            prop_assert_eq!(bits(&read), bits(&bundle));
            prop_assert_eq!(read, bundle.clone());
        }
    }

    #[test]
    fn any_bytes_are_refused_with_a_reason(data in vec(any::<u8>(), 0..300)) {
        let magic = [&[0x1f, 0x8b][..], &data].concat();
        let header = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..], &data].concat();
        for data in [&data, &magic, &header, &gzip(&data)] {
            let error = refused(data);
            prop_assert!(has_reason(&error), "{error}");
        }
    }

    #[test]
    fn any_json_is_refused_with_a_reason(text in r#"[\[\]{}",:a-z0-9 .eE+-]{0,80}"#) {
        let error = refused(text.as_bytes());
        prop_assert!(has_reason(&error), "{error}");
    }

    #[test]
    fn truncated_data_is_refused(bundle in bundles(), at in any::<prop::sample::Index>()) {
        for data in [plain(&bundle), gzip(&plain(&bundle))] {
            let error = refused(&data[..at.index(data.len())]);
            prop_assert!(has_reason(&error), "{error}");
        }
    }

    #[test]
    fn damaged_gzip_is_refused_or_is_the_same_bundle(
        bundle in bundles(),
        damage in vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let mut data = gzip(&plain(&bundle));
        for (at, flipped) in damage {
            let at = at.index(data.len());
            data[at] ^= flipped;
        }
        match read(&data) {
            // The damage was in a part of the gzip header that does not matter, such as the time or the operating
            // system, or two flips cancelled each other.
            Ok(read) => prop_assert_eq!(bits(&read), bits(&bundle)),
            Err(error) => prop_assert!(has_reason(&error), "{error}"),
        }
    }

    #[test]
    fn damaged_json_is_refused_or_fits_the_rules(
        bundle in bundles(),
        damage in vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let mut data = plain(&bundle);
        for (at, flipped) in damage {
            let at = at.index(data.len());
            data[at] ^= flipped;
        }
        match read(&data) {
            Ok(read) => {
                prop_assert_eq!(read.check(now()), Ok(()));
                prop_assert_eq!(read.site_id, site());
            }
            Err(error) => prop_assert!(has_reason(&error), "{error}"),
        }
    }

    #[test]
    fn data_that_is_not_base64_is_refused(text in "[^A-Za-z0-9+/=]{1,20}") {
        let error = bundle(&record(&text), now()).expect_err("not base64");
        prop_assert_eq!(&error.at, "data");
        prop_assert!(has_reason(&error), "{error}");
    }
}

#[test]
fn an_unsupported_encoding_is_named_with_the_correct_one() {
    let json = String::from_utf8(plain(&small())).expect("text");
    let utf16 = |order: fn(u16) -> [u8; 2]| json.encode_utf16().flat_map(order).collect::<Vec<_>>();
    let zlib = {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(json.as_bytes()).expect("zlib");
        zlib.finish().expect("zlib")
    };
    let zstd = [&[0x28, 0xb5, 0x2f, 0xfd][..], b"frame"].concat();
    let kpl = [&[0xf3, 0x89, 0x9a, 0xc2][..], b"protobuf and MD5"].concat();
    for (data, name, instead) in [
        ([&b"\xef\xbb\xbf"[..], json.as_bytes()].concat(), "byte order mark", "without it"),
        (kpl, "Kinesis Producer Library", "AggregationEnabled"),
        (zstd, "zstd", "gzip"),
        (zlib, "zlib", "gzip"),
        (utf16(u16::to_le_bytes), "UTF-16", "UTF-8"),
        (utf16(u16::to_be_bytes), "UTF-16", "UTF-8"),
        ([&b"\xff\xfe"[..], &utf16(u16::to_le_bytes)].concat(), "UTF-16", "UTF-8"),
        ([&b"\xfe\xff"[..], &utf16(u16::to_be_bytes)].concat(), "UTF-16", "UTF-8"),
        (gzip(&gzip(json.as_bytes())), "gzip in gzip", "once"),
        (STANDARD.encode(&json).into_bytes(), "base64", "the bytes themselves"),
        (STANDARD.encode(gzip(json.as_bytes())).into_bytes(), "base64", "the bytes themselves"),
    ] {
        let error = refused(&data);
        assert_eq!(error.at, ".");
        assert!(error.problem.contains(name) && error.problem.contains(instead), "{error}");
    }
}

fn small() -> Bundle {
    let sensor = SensorId::from_onboarding(OnboardingId::from_site(site()), 0);
    let series = vec![Series::new(sensor, vec![Sample::new(now(), -1.8)])];
    Bundle::new("b-1".parse().expect("an id"), site(), series)
}

/// Returns the bundle's JSON, padded with spaces to this length.
fn padded(length: usize) -> Vec<u8> {
    let mut json = plain(&small());
    json.resize(length, b' ');
    json
}

#[test]
fn data_that_unpacks_to_more_than_the_limit_is_refused() {
    assert_eq!(read(&gzip(&padded(MAX_BUNDLE_BYTES))), Ok(small()));
    let too_large = refused(&gzip(&padded(MAX_BUNDLE_BYTES + 1)));
    assert_eq!(too_large.problem, "unpacks to more than 2097152 bytes; split it");
    let members = [gzip(&padded(MAX_BUNDLE_BYTES)), gzip(b" ")].concat();
    assert_eq!(refused(&members), too_large);
}

#[test]
fn a_gzip_bomb_is_refused_before_it_is_fully_unpacked() {
    let member = gzip(&vec![0; 16 * 1024 * 1024]);
    assert!(member.len() < 20_000, "{} bytes", member.len());
    // A reader that unpacked all of it would report the damaged end instead.
    let bomb = [&member[..], &[0x1f, 0x8b, 0xff, 0xff]].concat();
    assert_eq!(refused(&bomb).problem, "unpacks to more than 2097152 bytes; split it");
    assert!(
        refused(&[&gzip(b"{}")[..], &[0x1f, 0x8b, 0xff, 0xff]].concat()).problem.contains("gzip")
    );
}

#[test]
fn a_bundle_under_another_sites_key_is_refused() {
    let data = STANDARD.encode(plain(&small()));
    for key in [
        SiteId::registered(OperatorId::DEFAULT, "", "other").to_string(),
        "logger-7".to_owned(),
        String::new(),
        format!("{}/", site()),
        format!("{}/logger-7", site()),
        format!("{}-{}", site(), OperatorId::DEFAULT),
        format!("{}/{}/", site(), OperatorId::DEFAULT),
        partition_key(SiteId::registered(OperatorId::DEFAULT, "", "other"), OperatorId::DEFAULT),
    ] {
        let mut wrong = record(&data);
        wrong.kinesis.partition_key = key.into();
        let error = bundle(&wrong, now()).expect_err("another site's key");
        assert_eq!(error.at, "partitionKey");
        assert!(error.problem.contains(&site().to_string()), "{error}");
    }
}

#[test]
fn the_partition_key_names_the_sender_of_a_bundle_from_the_api() {
    let data = STANDARD.encode(plain(&small()));
    let mut record = record(&data);
    let operator = OperatorId::registered("an operator");
    record.kinesis.partition_key = partition_key(site(), operator).into();
    let sent = bundle(&record, now()).expect("a bundle");
    assert_eq!(sent, SentBundle { bundle: small(), refused: Vec::new(), sender: Some(operator) });
    assert!(sent.may_be_from(operator));
    assert!(!sent.may_be_from(OperatorId::DEFAULT));

    record.kinesis.partition_key = site().to_string().into();
    let trusted = bundle(&record, now()).expect("a bundle");
    assert_eq!(trusted, SentBundle { bundle: small(), refused: Vec::new(), sender: None });
    assert!(trusted.may_be_from(operator) && trusted.may_be_from(OperatorId::DEFAULT));
}

#[tokio::test]
async fn records_of_one_site_with_different_senders_are_in_one_lane() {
    let other = SiteId::registered(OperatorId::DEFAULT, "", "other");
    let keys = [
        site().to_string(),
        partition_key(other, OperatorId::DEFAULT),
        partition_key(site(), OperatorId::DEFAULT),
        partition_key(site(), OperatorId::registered("an operator")),
    ];
    let records: Vec<_> = (1..)
        .zip(keys)
        .map(|(number, key)| {
            let mut record = record("");
            record.kinesis.partition_key = key.into();
            record.kinesis.sequence_number = format!("{number}").into();
            json!(record)
        })
        .collect();
    let batch = to_raw_value(&json!({ "Records": records })).expect("JSON");
    let started = RefCell::new(Vec::new());
    let deadline = Deadline::after(Duration::from_secs(5));
    let response = consume(&batch, deadline, async |record| {
        let number = record.kinesis.sequence_number.to_string();
        started.borrow_mut().push(number.clone());
        if number == "1" { Err("busy".to_owned()) } else { Ok(()) }
    });
    let response = response.await.expect("a response");
    assert_eq!(response.batch_item_failures[0].item_identifier.as_deref(), Some("1"));
    // The later records of the site are not started, because the first one failed.
    let mut started = started.into_inner();
    started.sort();
    assert_eq!(started, ["1", "2"]);
}

#[test]
fn the_age_of_a_record_is_the_time_since_its_arrival() {
    let mut record = record("");
    // Kinesis reports the arrival in seconds. `age_millis` returns milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "exact for some 200,000 years")]
    let seconds = now().millis() as f64 / 1000.0;
    for (arrival, age) in [(seconds - 1.5, 1500.0), (seconds, 0.0), (seconds + 1.5, 0.0)] {
        record.kinesis.approximate_arrival_timestamp = arrival;
        assert!((record.age_millis(now()) - age).abs() < 0.001, "{arrival}");
    }
}
