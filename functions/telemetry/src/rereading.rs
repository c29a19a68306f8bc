//! Finds the stored readings that queries read differently after a change of their sensor's metadata.
//!
//! It compares what [`Sensor::effective`] and the queries use: calibrations, no-data values and the stamp. Nothing else in
//! the metadata changes a query.

use std::collections::BTreeSet;

use contracts::{
    Sensor, Timestamp,
    events::RevisionKind,
    readings::{MAX_AHEAD_MILLIS, TimeRange},
    sensor::{Calibration, Dated, SensorMetadata},
};

use crate::query::offset;

/// A calibration that changes no value, like none.
const IDENTITY: Calibration = Calibration { gain: 1.0, offset: 0.0 };

/// Returns the ranges of readings that are read differently after the change, at most one of each kind. `now` is the time
/// of the change in the register.
///
/// A range ends where the difference ends, and at the latest after the last reading that can be stored now. Readings
/// with later times are stored after the change, so no query has returned them with the old definition.
pub(crate) fn reread(
    before: &Sensor,
    after: &Sensor,
    now: Timestamp,
) -> Vec<(RevisionKind, TimeRange)> {
    let end = now.plus_millis(MAX_AHEAD_MILLIS + 1);
    let (old, new) = (&before.metadata, &after.metadata);
    let calibrated = dates(&old.calibrations, &new.calibrations);
    let calibration = |of: &SensorMetadata, at| of.calibration_at(at).unwrap_or(IDENTITY);
    let calibrated = differing(calibrated, end, |at| {
        calibration(old, at) != calibration(new, at) || offset(before) != offset(after)
    });
    let flagged = dates(&old.no_data_values, &new.no_data_values);
    let flagged = differing(flagged, end, |at| {
        !same_values(old.no_data_values_at(at), new.no_data_values_at(at))
    });
    [(RevisionKind::Calibration, calibrated), (RevisionKind::Flag, flagged)]
        .into_iter()
        .filter_map(|(kind, range)| Some((kind, range?)))
        .collect()
}

/// Returns the `valid_from` of each entry of both lists. `None` means: valid before all other entries.
fn dates<'a, T>(
    before: &'a [Dated<T>],
    after: &'a [Dated<T>],
) -> impl Iterator<Item = Option<Timestamp>> {
    before.iter().chain(after).map(|entry| entry.valid_from)
}

/// Returns the range from the first to the last difference before `end`. Between two dates, nothing changes.
fn differing(
    dates: impl Iterator<Item = Option<Timestamp>>,
    end: Timestamp,
    differs: impl Fn(Timestamp) -> bool,
) -> Option<TimeRange> {
    // No reading is earlier.
    let first = Timestamp::from_millis(0);
    let starts = dates.flatten().map(|date| date.max(first)).chain([first]);
    let starts: BTreeSet<_> = starts.filter(|start| *start < end).collect();
    let ends = starts.iter().skip(1).chain([&end]);
    let ranges = starts.iter().zip(ends).filter(|(start, _)| differs(**start));
    ranges
        .map(|(from, to)| TimeRange { from: *from, to: *to })
        .reduce(|first, last| TimeRange { from: first.from, to: last.to })
}

/// Returns whether two lists have the same values, in any order.
fn same_values(a: &[f64], b: &[f64]) -> bool {
    a.iter().all(|value| b.contains(value)) && b.iter().all(|value| a.contains(value))
}

#[cfg(test)]
mod tests {
    use contracts::{
        Metric, OnboardingId, OperatorId, SensorId, SiteId,
        effective::Values,
        sample::Sample,
        sensor::{NoDataValues, Stamp},
    };
    use proptest::{
        collection::btree_map, option, prelude::*, sample::select, test_runner::RngSeed,
    };

    use super::*;

    fn sensor(metadata: SensorMetadata) -> Sensor {
        let onboarding =
            OnboardingId::from_site(SiteId::registered(OperatorId::DEFAULT, "", "rereading"));
        Sensor {
            sensor_id: SensorId::from_onboarding(onboarding, 0),
            metric: Metric::AirTemperature,
            unit: "Cel".to_owned(),
            min: None,
            max: None,
            utc_offset: None,
            metadata,
        }
    }

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_millis(minute * 60_000)
    }

    /// The time of the change.
    const NOW: i64 = 100;

    /// Returns calibrations from these minutes on, each with a gain.
    fn gains(entries: &[(Option<i64>, f64)]) -> Sensor {
        let calibrations = entries.iter().map(|(from, gain)| Dated {
            valid_from: from.map(at),
            value: Calibration { gain: *gain, offset: 0.0 },
        });
        sensor(SensorMetadata { calibrations: calibrations.collect(), ..Default::default() })
    }

    fn no_data(values: &[f64]) -> Sensor {
        let no_data_values = vec![Dated::always(NoDataValues { values: values.to_vec() })];
        sensor(SensorMetadata { no_data_values, ..Default::default() })
    }

    fn stamped(stamp: Stamp) -> Sensor {
        let mut metadata = SensorMetadata::default();
        metadata.description.stamp = Some(stamp);
        sensor(metadata)
    }

    fn range(from: Timestamp, to: Timestamp) -> TimeRange {
        TimeRange { from, to }
    }

    fn last() -> Timestamp {
        at(NOW + 15).plus_millis(1)
    }

    #[test]
    fn a_range_has_all_differences_and_ends_with_the_readings_that_can_be_stored() {
        let (none, always) = (gains(&[]), gains(&[(None, 2.0)]));
        let dated = gains(&[(Some(10), 2.0), (Some(20), 3.0), (Some(30), 4.0)]);
        for (before, after, expected) in [
            (&none, &none, None),
            (&none, &always, Some(range(at(0), last()))),
            (&always, &none, Some(range(at(0), last()))),
            (&none, &dated, Some(range(at(10), last()))),
            // One entry has another value, or is missing. The other entries are the same.
            (
                &dated,
                &gains(&[(Some(10), 2.0), (Some(20), 5.0), (Some(30), 4.0)]),
                Some(range(at(20), at(30))),
            ),
            (&dated, &gains(&[(Some(10), 2.0), (Some(30), 4.0)]), Some(range(at(20), at(30)))),
            // Two differences with equal values between them.
            (
                &dated,
                &gains(&[(Some(15), 2.0), (Some(20), 3.0), (Some(25), 4.0)]),
                Some(range(at(10), at(30))),
            ),
            // Another entry with the same value.
            (
                &dated,
                &gains(&[(Some(10), 2.0), (Some(15), 2.0), (Some(20), 3.0), (Some(30), 4.0)]),
                None,
            ),
            // These dates are before 1970, or near the last time that a reading can have now.
            (&none, &gains(&[(Some(-20), 2.0), (Some(-10), 3.0)]), Some(range(at(0), last()))),
            (&none, &gains(&[(Some(-20), 2.0), (Some(-10), 1.0)]), None),
            (&always, &gains(&[(None, 3.0), (Some(-10), 2.0)]), None),
            (&none, &gains(&[(Some(NOW + 15), 2.0)]), Some(range(at(NOW + 15), last()))),
            (&none, &gains(&[(Some(NOW + 16), 2.0)]), None),
        ] {
            let expected = expected.map(|range| (RevisionKind::Calibration, range));
            let found = reread(before, after, at(NOW));
            assert_eq!(found, Vec::from_iter(expected), "{before:?} {after:?}");
        }
    }

    #[test]
    fn no_data_values_are_flags_and_the_stamp_is_a_calibration() {
        let (calibration, flag) = (RevisionKind::Calibration, RevisionKind::Flag);
        let all = || range(at(0), last());
        let plain = sensor(SensorMetadata::default());
        let mut both = no_data(&[1.0]);
        both.metadata.calibrations = gains(&[(Some(10), 2.0)]).metadata.calibrations;
        for (before, after, expected) in [
            (&plain, &no_data(&[-9999.0]), vec![(flag.clone(), all())]),
            (&plain, &no_data(&[]), vec![]),
            (&no_data(&[1.0, 2.0]), &no_data(&[2.0, 1.0]), vec![]),
            (&no_data(&[1.0, 2.0]), &no_data(&[2.0]), vec![(flag.clone(), all())]),
            (&plain, &stamped(Stamp::End), vec![(calibration.clone(), all())]),
            (&plain, &stamped(Stamp::Start), vec![]),
            (&stamped(Stamp::End), &stamped(Stamp::Instant), vec![(calibration.clone(), all())]),
            (&plain, &both, vec![(calibration.clone(), range(at(10), last())), (flag, all())]),
        ] {
            assert_eq!(reread(before, after, at(NOW)), expected, "{before:?} {after:?}");
        }
    }

    /// Generates metadata with a few dates and a few values, so that two of them have much in common.
    fn metadata() -> impl Strategy<Value = SensorMetadata> {
        fn dated<T: std::fmt::Debug>(
            value: impl Strategy<Value = T>,
        ) -> impl Strategy<Value = Vec<Dated<T>>> {
            let entries = btree_map(option::of(-1_i64..12), value, 0..4);
            entries.prop_map(|entries| {
                let entries = entries.into_iter();
                let dated = |(from, value): (Option<i64>, T)| Dated {
                    valid_from: from.map(|tens| at(10 * tens)),
                    value,
                };
                entries.map(dated).collect()
            })
        }
        let gain = select(vec![1.0, 2.0]).prop_map(|gain| Calibration { gain, offset: 0.0 });
        let values = select(vec![vec![], vec![5.0], vec![5.0, 6.0]]);
        let values = values.prop_map(|values| NoDataValues { values });
        let stamp = select(vec![None, Some(Stamp::Start), Some(Stamp::End)]);
        (dated(gain), dated(values), stamp).prop_map(|(calibrations, no_data_values, stamp)| {
            let mut metadata =
                SensorMetadata { calibrations, no_data_values, ..SensorMetadata::default() };
            metadata.description.stamp = stamp;
            metadata
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn each_reading_that_is_read_differently_is_in_a_range(
            before in metadata(),
            after in metadata(),
        ) {
            let (before, after) = (sensor(before), sensor(after));
            let ranges = reread(&before, &after, at(NOW));
            for minute in 0..=NOW + 15 {
                let differs = offset(&before) != offset(&after)
                    || [5.0, 6.0, 7.0].into_iter().any(|value| {
                        let sample = Sample::new(at(minute), value);
                        Values::ALL.into_iter().any(|values| {
                            before.effective(sample, values) != after.effective(sample, values)
                        })
                    });
                let is_covered = ranges.iter().any(|(_, range)| range.contains(at(minute)));
                prop_assert!(is_covered || !differs, "minute {minute}: {ranges:?}");
            }
        }
    }
}
