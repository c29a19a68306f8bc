//! Decides which changes of state a bundle's samples cause. The functions here are pure; the caller commits. The
//! arrival of a record is when it reached the readings stream. To judge a sample is to compare its effective value with
//! the limits. A sample is ahead if its time is later than the arrival of its record, because the logger's clock is
//! fast.
//!
//! The next state depends on the current state and one sample only; samples are not counted. So judging a sample again
//! changes nothing as long as no later sample has changed the state. A rule therefore stores only what is needed to
//! know the samples that were judged before its last change:
//!
//! - `changed_at`: the time of the sample that caused the last change;
//! - `change_arrived_at`: the latest arrival of a record that caused a change;
//! - `ahead`: the bundles with judged samples ahead, each with the time of its last judged sample. Only a fast clock causes
//!   them. A bundle is kept only while that time is after the limit of case 1 below.
//!
//! A sample is skipped in these cases, and judged in all others:
//!
//! 1. It is not after `changed_at` and not after `change_arrived_at`: it is late, or was judged. The limit is the
//!    earlier of the two times. So a `changed_at` in the future does not hide samples that are measured later.
//! 2. Its bundle is in `ahead`, and it is not after the time there. A bundle that is sent again or that has grown has the
//!    same samples up to that time, so it was judged.
//! 3. Its record arrived before `change_arrived_at`, and the sample is ahead. The records of one sender are delivered in
//!    order, so this record was delivered before the one that caused the change. This delivery is a repeat: the sample
//!    was judged. (A fast sample of another sender may be skipped, too.)
//! 4. It is not after the watermark of its sensor in this execution environment: it is late. For each judged bundle,
//!    take the earlier of its last judged sample and its arrival. The watermark is the latest of these times. The
//!    environment also knows the bundles in which it judged samples ahead (as in case 2). The next change stores them in
//!    the rule.
//!
//! Invariants:
//!
//! - A sample of a bundle causes at most one change, also if its record is delivered again, if its bundle is sent
//!   again, and after a restart. The limit of case 1 never decreases. (Only the first change of a rule that an earlier
//!   release wrote may decrease it.) So the sample that caused a change is skipped later: it is at or before the limit,
//!   or its bundle stays in `ahead` until the limit has reached the sample. (A rule stores a limited number of bundles in
//!   `ahead`.)
//! - A sample that is measured after the arrival of all earlier records of its sensor is judged, whatever the times in
//!   those records were.
//!
//! A restart forgets watermarks, and the bundles that the next change would have stored. Late samples may then be judged,
//! unless they are too old, and may change the state. Samples with later times were judged in the old state. If their
//! record is delivered again, they are judged again, in the new state. A logger with a fast clock may send a forgotten
//! bundle again after a later bundle has changed the state. The samples of the forgotten bundle are then judged again, in
//! the new state, and may cause new changes.

use std::collections::HashMap;

use contracts::{
    Sensor, SensorId, Timestamp,
    effective::Values,
    events::Limit,
    readings::Bundle,
    sample::{Quality, Sample},
};

use crate::{Rule, State, ahead::Ahead};

/// What is known about the last judged samples of each sensor.
pub type Watermarks = HashMap<SensorId, Watermark>;

/// What an execution environment knows about the samples of a sensor that it judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watermark {
    /// For each judged bundle, the earlier of its last judged sample and its arrival. This is the latest of these times.
    pub at: Option<Timestamp>,
    /// The bundles with judged samples ahead. A bundle is kept while its last judged sample is later than `at`.
    pub ahead: Ahead,
}

/// A bundle of live readings that arrived at the stream.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// The arrival of its record.
    pub at: Timestamp,
    /// The earliest time of a sample that is judged.
    pub oldest: Timestamp,
}

/// A change of a sensor's state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// The value went beyond a limit.
    Breached {
        /// The limit that was breached.
        limit: Limit,
        /// The limit's value, in the sensor's unit.
        threshold: f64,
    },
    /// The value is back within both limits.
    BackToNormal {
        /// The time of the sample that breached the limit.
        breached_at: Timestamp,
    },
}

/// A change of state with its sensor and sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// The index of the sensor's rule, from 0.
    pub rule: usize,
    /// The time of the sample that caused the change.
    pub at: Timestamp,
    /// The effective value of that sample.
    pub value: f64,
    /// The change.
    pub change: Change,
    /// The time of the last judged sample of this bundle before the next change.
    pub judged_to: Timestamp,
}

/// The result of judging a bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// The changes, grouped by sensor, in the order of time.
    pub transitions: Vec<Transition>,
    /// What was judged.
    pub judged: Judged,
}

/// What was judged of a bundle, and how many samples were not, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// The time of each sensor's last judged sample.
    pub up_to: Vec<(SensorId, Timestamp)>,
    /// The number of samples that were compared with limits.
    pub samples: usize,
    /// The number of samples that were older than the maximum age when they arrived.
    pub old: usize,
    /// The number of samples that were late or repeated.
    pub late: usize,
    /// The number of samples without a usable value.
    pub not_usable: usize,
    /// The number of samples with a value outside the metric's plausible range.
    pub implausible: usize,
}

/// Judges the samples of sensors that have rules. The documentation of this module says which samples are skipped.
#[must_use]
pub fn judge(rules: &[Rule], arrived: Arrived<'_>, watermarks: &Watermarks) -> Judgement {
    let Judgement { mut transitions, mut judged } = Judgement::default();
    for series in &arrived.bundle.series {
        let sensor_id = series.sensor_id;
        let watched = rules.iter().enumerate().find(|(_, rule)| rule.sensor.sensor_id == sensor_id);
        let Some((index, rule)) = watched else { continue };
        let samples = not_old(&series.samples, arrived);
        judged.old += series.samples.len() - samples.len();
        let unjudged = not_judged(samples, rule, arrived, watermarks.get(&sensor_id));
        judged.late += samples.len() - unjudged.len();

        let sensor = &rule.sensor;
        let plausible = sensor.metric.plausible(&sensor.unit);
        let limits = Limits::of(sensor);
        let mut state = rule.state;
        let (mut up_to, mut last_change) = (None, None);
        for sample in unjudged {
            let at = sample.at;
            let effective = sensor.effective(*sample, Values::Calibrated);
            let Some(value) = effective.counted(Quality::Usable) else {
                judged.not_usable += 1;
                continue;
            };
            if plausible.is_some_and(|(low, high)| !(low..=high).contains(&value)) {
                judged.implausible += 1;
                continue;
            }
            judged.samples += 1;
            up_to = Some(at);
            if let Some(change) = limits.change(state, value) {
                state = change.state(at);
                let transition = Transition { rule: index, at, value, change, judged_to: at };
                transitions.extend(last_change.replace(transition));
            } else if let Some(Transition { judged_to, .. }) = &mut last_change {
                *judged_to = at;
            }
        }
        transitions.extend(last_change);
        judged.up_to.extend(up_to.map(|up_to| (sensor_id, up_to)));
    }
    Judgement { transitions, judged }
}

/// Returns the rules after the transitions of a bundle.
#[must_use]
pub fn apply(
    rules: &[Rule],
    transitions: &[Transition],
    arrived: Arrived<'_>,
    watermarks: &Watermarks,
) -> Vec<Rule> {
    let mut rules = rules.to_vec();
    for Transition { rule, at, change, judged_to, .. } in transitions {
        let rule = &mut rules[*rule];
        rule.state = change.state(*at);
        rule.changed_at = Some(*at);
        rule.change_arrived_at = rule.change_arrived_at.max(Some(arrived.at));
        if let Some(watermark) = watermarks.get(&rule.sensor.sensor_id) {
            rule.ahead.add_all(&watermark.ahead);
        }
        if *judged_to > arrived.at {
            rule.ahead.add(&arrived.bundle.bundle_id, *judged_to);
        }
        if let Some(late) = rule.late_until() {
            rule.ahead.forget_until(late);
        }
    }
    rules
}

/// Returns the samples that are not too old for an alert.
fn not_old<'a>(samples: &'a [Sample], arrived: Arrived<'_>) -> &'a [Sample] {
    let old = samples.partition_point(|sample| sample.at < arrived.oldest);
    &samples[old..]
}

/// Returns the samples that are not late and were not judged before the rule's last change.
fn not_judged<'a>(
    samples: &'a [Sample],
    rule: &Rule,
    arrived: Arrived<'_>,
    watermark: Option<&Watermark>,
) -> &'a [Sample] {
    let bundle = &arrived.bundle.bundle_id;
    let is_repeated = Some(arrived.at) < rule.change_arrived_at;
    let skipped_until = [
        rule.late_until(),
        rule.ahead.judged_to(bundle),
        watermark.and_then(|watermark| watermark.at),
        watermark.and_then(|watermark| watermark.ahead.judged_to(bundle)),
    ];
    let skipped_until = skipped_until.into_iter().max().flatten();
    let first = samples.partition_point(|sample| Some(sample.at) <= skipped_until);
    let samples = &samples[first..];
    let ahead = |sample: &Sample| is_repeated && sample.at > arrived.at;
    &samples[..samples.partition_point(|sample| !ahead(sample))]
}

impl Change {
    /// Returns the state after the sample of this time.
    fn state(self, at: Timestamp) -> State {
        match self {
            Self::Breached { limit, .. } => State::Breached { limit, breached_at: at },
            Self::BackToNormal { .. } => State::Normal,
        }
    }
}

/// The limits of a sensor, and the range in which a breach ends.
#[derive(Clone, Copy, Debug)]
struct Limits {
    min: Option<f64>,
    max: Option<f64>,
    /// How far inside its limits a value must be to end a breach. It keeps readings that scatter around a limit from
    /// causing many breaches.
    deadband: f64,
}

impl Limits {
    fn of(sensor: &Sensor) -> Self {
        let (min, max) = (sensor.min, sensor.max);
        let mut deadband = sensor.metric.deadband(&sensor.unit).unwrap_or_default();
        if let (Some(min), Some(max)) = (min, max) {
            // Between narrow limits the deadband is reduced, so that half of the range is still normal.
            deadband = deadband.min((max - min) / 4.0);
        }
        Self { min, max, deadband }
    }

    /// Returns the change of state that the value causes.
    fn change(&self, state: State, value: f64) -> Option<Change> {
        match (state, self.beyond(value)) {
            (State::Breached { limit, .. }, Some((beyond, _))) if limit == beyond => None,
            (_, Some((limit, threshold))) => Some(Change::Breached { limit, threshold }),
            (State::Breached { breached_at, .. }, None) => {
                self.is_back(value).then_some(Change::BackToNormal { breached_at })
            }
            (State::Normal, None) => None,
        }
    }

    /// Returns the limit that the value exceeds, with the limit's value.
    fn beyond(&self, value: f64) -> Option<(Limit, f64)> {
        match (self.min, self.max) {
            (Some(min), _) if value < min => Some((Limit::Min, min)),
            (_, Some(max)) if value > max => Some((Limit::Max, max)),
            _ => None,
        }
    }

    /// Returns whether the value is within both limits by at least the deadband.
    fn is_back(&self, value: f64) -> bool {
        self.min.is_none_or(|min| value >= min + self.deadband)
            && self.max.is_none_or(|max| value <= max - self.deadband)
    }
}

#[cfg(test)]
mod tests {
    use contracts::{
        Metric,
        readings::{BundleId, Series},
        sample::Flag,
        sensor::SensorMetadata,
    };
    use proptest::{prelude::*, test_runner::RngSeed};
    use testkit::sample::{noon, saga};

    use super::*;

    /// Returns the rule of a thermometer. Its deadband is half a degree.
    fn rule(index: usize, min: Option<f64>, max: Option<f64>) -> Rule {
        Rule::new(Sensor {
            sensor_id: SensorId::from_onboarding(saga("a").onboarding_id, index),
            metric: Metric::AirTemperature,
            unit: "Cel".to_owned(),
            min,
            max,
            utc_offset: None,
            metadata: SensorMetadata::default(),
        })
    }

    /// Returns a bundle with one value per second from noon on, for each of the first sensors.
    fn bundle<V: AsRef<[f64]>>(series: &[V]) -> Bundle {
        let series = series.iter().enumerate().map(|(index, values)| {
            let values = (0..).map(noon).zip(values.as_ref());
            let samples = values.map(|(at, value)| Sample::new(at, *value)).collect();
            Series::new(SensorId::from_onboarding(saga("a").onboarding_id, index), samples)
        });
        Bundle::new("b-1".parse().expect("an id"), saga("a").site_id, series.collect())
    }

    /// Returns a part of each series.
    fn part(bundle: &Bundle, range_of: impl Fn(usize) -> std::ops::Range<usize>) -> Bundle {
        let mut bundle = bundle.clone();
        for series in &mut bundle.series {
            let range = range_of(series.samples.len());
            series.samples = series.samples[range].to_vec();
        }
        bundle
    }

    /// Returns the bundle as it arrives at this number of seconds after noon.
    fn arrived(bundle: &Bundle, seconds: i64) -> Arrived<'_> {
        Arrived { bundle, at: noon(seconds), oldest: noon(-3600) }
    }

    /// Returns the bundle as it arrives after all its samples.
    fn in_time(bundle: &Bundle) -> Arrived<'_> {
        arrived(bundle, 3600)
    }

    fn judge_without_watermarks(rules: &[Rule], bundle: &Bundle) -> Judgement {
        judge(rules, in_time(bundle), &Watermarks::new())
    }

    fn apply_without_watermarks(
        rules: &[Rule],
        transitions: &[Transition],
        bundle: &Bundle,
    ) -> Vec<Rule> {
        apply(rules, transitions, in_time(bundle), &Watermarks::new())
    }

    /// Returns the rules after the bundle was judged.
    fn after(rules: &[Rule], bundle: &Bundle) -> Vec<Rule> {
        apply_without_watermarks(
            rules,
            &judge_without_watermarks(rules, bundle).transitions,
            bundle,
        )
    }

    /// Returns the seconds after noon of the samples that cause changes.
    fn change_times(judgement: &Judgement) -> Vec<i64> {
        let times = judgement.transitions.iter().map(|transition| transition.at);
        times.map(|at| (at.millis() - noon(0).millis()) / 1000).collect()
    }

    fn id(text: &str) -> BundleId {
        text.parse().expect("an id")
    }

    /// Returns the changes of one sensor, each with the index of the value that caused it.
    fn changes(rule: Rule, values: &[f64]) -> Vec<(i64, &'static str)> {
        let transitions =
            judge_without_watermarks(&[rule], &bundle(&[values])).transitions.into_iter();
        let changes = transitions.map(|Transition { at, change, .. }| {
            let name = match change {
                Change::Breached { limit: Limit::Min, .. } => "low",
                Change::Breached { limit: Limit::Max, .. } => "high",
                Change::BackToNormal { .. } => "normal",
            };
            ((at.millis() - noon(0).millis()) / 1000, name)
        });
        changes.collect()
    }

    #[test]
    fn a_value_beyond_a_limit_is_a_breach_and_a_value_at_the_limit_is_not() {
        let both = || rule(0, Some(-10.0), Some(30.0));
        assert_eq!(changes(both(), &[-10.0, 0.0, 30.0]), []);
        assert_eq!(changes(both(), &[20.0, 30.1, 31.0]), [(1, "high")]);
        assert_eq!(changes(both(), &[20.0, -10.1, -99.0]), [(1, "low")]);
        assert_eq!(changes(rule(0, None, Some(30.0)), &[-99.0, 31.0]), [(1, "high")]);
        assert_eq!(changes(rule(0, Some(-10.0), None), &[99.0, -11.0]), [(1, "low")]);
    }

    #[test]
    fn a_breach_ends_when_the_value_is_back_by_the_deadband() {
        let both = || rule(0, Some(-10.0), Some(30.0));
        assert_eq!(changes(both(), &[31.0, 29.6, 30.4, 29.5]), [(0, "high"), (3, "normal")]);
        assert_eq!(changes(both(), &[-11.0, -9.6, -10.4, -9.5]), [(0, "low"), (3, "normal")]);
        let one = || rule(0, None, Some(30.0));
        assert_eq!(changes(one(), &[31.0, 29.6, -99.0]), [(0, "high"), (2, "normal")]);
    }

    #[test]
    fn the_deadband_is_reduced_between_narrow_limits() {
        let narrow = rule(0, Some(20.0), Some(21.0));
        let high = [(0, "high"), (2, "normal")];
        assert_eq!(changes(narrow.clone(), &[21.5, 20.8, 20.75]), high);
        assert_eq!(changes(narrow, &[19.5, 20.2, 20.25]), [(0, "low"), (2, "normal")]);
    }

    #[test]
    fn a_jump_from_beyond_one_limit_to_beyond_the_other_is_another_breach() {
        let both = rule(0, Some(-10.0), Some(30.0));
        assert_eq!(
            changes(both, &[31.0, -11.0, 31.0, 20.0]),
            [(0, "high"), (1, "low"), (2, "high"), (3, "normal")]
        );
    }

    #[test]
    fn a_transition_has_the_data_of_its_event() {
        let rules = [rule(0, Some(-10.0), Some(30.0))];
        let bundle = bundle(&[[20.0, 31.0, 32.0, 20.0, 21.0]]);
        let judgement = judge_without_watermarks(&rules, &bundle);
        let (breached_at, back_at) = (noon(1), noon(3));
        let breach = Change::Breached { limit: Limit::Max, threshold: 30.0 };
        let back = Change::BackToNormal { breached_at };
        let transition =
            |at, value, change, judged_to| Transition { rule: 0, at, value, change, judged_to };
        let transitions = vec![
            transition(breached_at, 31.0, breach, noon(2)),
            transition(back_at, 20.0, back, noon(4)),
        ];
        let half = apply_without_watermarks(&rules, &transitions[..1], &bundle);
        assert_eq!(half[0].state, State::Breached { limit: Limit::Max, breached_at });
        assert_eq!(half[0].changed_at, Some(breached_at));
        let after = apply_without_watermarks(&rules, &transitions, &bundle);
        assert_eq!((after[0].state, after[0].changed_at), (State::Normal, Some(back_at)));
        assert_eq!(after[0].change_arrived_at, Some(noon(3600)));
        assert!(after[0].ahead.is_empty());
        let up_to = vec![(rules[0].sensor.sensor_id, noon(4))];
        let judged = Judged { up_to, samples: 5, ..Judged::default() };
        assert_eq!(judgement, Judgement { transitions, judged });
    }

    #[test]
    fn a_sample_not_later_than_the_last_change_or_the_watermark_is_late() {
        let mut rules = [rule(0, None, Some(30.0))];
        let above_limit = bundle(&[[31.0; 5]]);
        let watermarks = [1, 4].map(|seconds| {
            let watermark = Watermark { at: Some(noon(seconds)), ahead: Ahead::default() };
            Watermarks::from([(rules[0].sensor.sensor_id, watermark)])
        });
        let judge = |rules: &[Rule], watermarks| judge(rules, in_time(&above_limit), watermarks);
        let judgement = judge(&rules, &watermarks[0]);
        assert_eq!((judgement.judged.samples, judgement.judged.late), (3, 2));
        assert_eq!(change_times(&judgement), [2]);
        assert_eq!(judge(&rules, &watermarks[1]).judged.late, 5);
        // The later of both times counts.
        rules[0].changed_at = Some(noon(3));
        assert_eq!(judge(&rules, &watermarks[0]).judged.late, 4);
        assert_eq!(judge(&rules, &watermarks[1]).judged.late, 5);
    }

    #[test]
    fn a_change_in_the_future_makes_samples_late_up_to_its_arrival() {
        let mut rules = [rule(0, None, Some(30.0))];
        (rules[0].changed_at, rules[0].change_arrived_at) = (Some(noon(100)), Some(noon(2)));
        let above_limit = bundle(&[[31.0; 6]]);
        let judge = |seconds| judge(&rules, arrived(&above_limit, seconds), &Watermarks::new());
        // A record that arrived in the same millisecond as that of the change may be a later one. So it is judged.
        for arrival in [6, 2] {
            assert_eq!((change_times(&judge(arrival)), judge(arrival).judged.late), (vec![3], 3));
        }
        // The record arrived before, so it was judged.
        assert_eq!((change_times(&judge(1)), judge(1).judged.late), (vec![], 6));
    }

    #[test]
    fn samples_of_an_earlier_record_are_judged_if_they_are_later_than_the_last_change() {
        // Two senders of a sensor: their records are not in order.
        let mut rules = [rule(0, None, Some(30.0))];
        (rules[0].changed_at, rules[0].change_arrived_at) = (Some(noon(1)), Some(noon(10)));
        let above_limit = bundle(&[[31.0; 6]]);
        let judgement = judge(&rules, arrived(&above_limit, 4), &Watermarks::new());
        assert_eq!((change_times(&judgement), judgement.judged.samples), (vec![2], 3));
        // The arrival of the last change stays the latest one.
        let transitions = &judgement.transitions;
        let after = apply(&rules, transitions, arrived(&above_limit, 4), &Watermarks::new());
        assert_eq!(after[0].change_arrived_at, Some(noon(10)));
    }

    #[test]
    fn a_bundle_that_was_judged_ahead_is_judged_from_where_it_ended() {
        let fast = bundle(&[[31.0, 20.0, 31.0, 31.0]]);
        let rules = [rule(0, None, Some(30.0))];
        let none = Watermarks::new();
        let judgement = judge(&rules, arrived(&fast, 0), &none);
        assert_eq!(change_times(&judgement), [0, 1, 2]);
        // Only a part of the changes is committed, or all.
        for (committed, again, ahead) in
            [(1, vec![1, 2], None), (2, vec![2], Some(1)), (3, vec![], Some(3))]
        {
            let transitions = &judgement.transitions[..committed];
            let rules = apply(&rules, transitions, arrived(&fast, 0), &none);
            assert_eq!(rules[0].ahead.judged_to(&fast.bundle_id), ahead.map(noon), "{committed}");
            for arrival in [0, 2] {
                assert_eq!(change_times(&judge(&rules, arrived(&fast, arrival), &none)), again);
            }
        }
        let rules = apply(&rules, &judgement.transitions, arrived(&fast, 0), &none);
        let grown = bundle(&[[31.0, 20.0, 31.0, 31.0, 20.0]]);
        assert_eq!(change_times(&judge(&rules, arrived(&grown, 2), &none)), [4]);
        // Another bundle with these times is from a logger whose clock was corrected meanwhile. So its samples are new.
        let mut other = grown;
        other.bundle_id = id("other");
        assert_eq!(change_times(&judge(&rules, arrived(&other, 2), &none)), [1, 2, 4]);
    }

    #[test]
    fn a_rule_remembers_the_bundles_ahead_of_its_last_change() {
        let mut rules = vec![rule(0, None, Some(30.0))];
        let watermark = |bundles: &[(&str, i64)]| {
            let mut watermark = Watermark::default();
            for (bundle, to) in bundles {
                watermark.ahead.add(&id(bundle), noon(*to));
            }
            Watermarks::from([(rule(0, None, None).sensor.sensor_id, watermark)])
        };
        let change = |rules: &[Rule], values: &[f64], arrival, watermarks: &Watermarks| {
            let bundle = bundle(&[values]);
            let arrived = arrived(&bundle, arrival);
            apply(rules, &judge(rules, arrived, watermarks).transitions, arrived, watermarks)
        };
        let known = |rules: &[Rule]| {
            ["b-1", "b-2", "b-3"].map(|bundle| rules[0].ahead.judged_to(&id(bundle)))
        };
        rules = change(&rules, &[31.0], 1, &watermark(&[("b-2", 0), ("b-3", 100)]));
        assert_eq!(known(&rules), [None, None, Some(noon(100))]);
        // The bundle b-1 itself is ahead.
        rules = change(&rules, &[31.0, 20.0, 21.0], 1, &watermark(&[("b-2", 50)]));
        assert_eq!(known(&rules), [Some(noon(2)), Some(noon(50)), Some(noon(100))]);
    }

    #[test]
    fn samples_that_are_too_old_are_not_judged() {
        let above_limit = bundle(&[[31.0; 5]]);
        let arrived = Arrived { oldest: noon(3), ..in_time(&above_limit) };
        let judgement = judge(&[rule(0, None, Some(30.0))], arrived, &Watermarks::new());
        assert_eq!(change_times(&judgement), [3]);
        assert_eq!((judgement.judged.old, judgement.judged.samples), (3, 2));
    }

    #[test]
    fn samples_without_a_usable_and_plausible_value_are_not_judged() {
        let mut bundle = bundle(&[[31.0, -9999.0, 20.0, 101.0, 20.0]]);
        let samples = &mut bundle.series[0].samples;
        samples[2] = Sample::flagged(samples[2].at, 20.0, Flag::Fail);
        samples[4] = Sample::missing(samples[4].at);
        let rules = [rule(0, Some(-10.0), Some(30.0))];
        let judgement = judge_without_watermarks(&rules, &bundle);
        assert_eq!(change_times(&judgement), [0]);
        assert_eq!(judgement.transitions[0].judged_to, noon(0));
        let up_to = vec![(rules[0].sensor.sensor_id, noon(0))];
        let judged =
            Judged { up_to, samples: 1, not_usable: 2, implausible: 2, ..Judged::default() };
        assert_eq!(judgement.judged, judged);
    }

    #[test]
    fn sensors_without_a_rule_are_not_judged() {
        let rules = [rule(1, None, Some(30.0))];
        let judgement = judge_without_watermarks(&rules, &bundle(&[vec![99.0; 3], vec![99.0]]));
        assert_eq!((judgement.judged.samples, judgement.judged.late), (1, 0));
        assert_eq!(judgement.transitions.len(), 1);
    }

    /// Generates rules for three sensors, with wide, narrow or single limits.
    fn rules() -> impl Strategy<Value = Vec<Rule>> {
        let limits = (-40..40_i32, 1..60_i32, 0..3_u8).prop_map(|(min, room, kind)| {
            let (min, max) = (f64::from(min) / 4.0, f64::from(min + room) / 4.0);
            match kind {
                0 => (Some(min), Some(max)),
                1 => (Some(min), None),
                _ => (None, Some(max)),
            }
        });
        proptest::collection::vec(limits, 3).prop_map(|limits| {
            let rules = limits.into_iter().enumerate();
            rules.map(|(index, (min, max))| rule(index, min, max)).collect()
        })
    }

    /// Generates readings around the limits. Many of them are exactly at a limit.
    fn readings() -> impl Strategy<Value = Bundle> {
        let values = (-60..80_i32).prop_map(|value| f64::from(value) / 4.0);
        let series = proptest::collection::vec(values, 1..40);
        proptest::collection::vec(series, 3).prop_map(|series| bundle(&series))
    }

    fn cut(len: usize, percent: usize) -> usize {
        len * percent / 100
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn judging_any_part_again_changes_nothing(
            rules in rules(),
            bundle in readings(),
            first in 0..=100_usize,
            from in 0..=100_usize,
            to in 0..=100_usize,
        ) {
            // The bundle is judged in two parts.
            let mut after_both = rules;
            for half in [
                part(&bundle, |len| 0..cut(len, first)),
                part(&bundle, |len| cut(len, first)..len),
            ] {
                after_both = after(&after_both, &half);
            }
            let repeated = [
                bundle.clone(),
                part(&bundle, |len| 0..cut(len, to)),
                part(&bundle, |len| cut(len, from)..len),
                part(&bundle, |len| cut(len, from.min(to))..cut(len, from.max(to))),
            ];
            for part in repeated {
                prop_assert_eq!(judge_without_watermarks(&after_both, &part).transitions, []);
            }
        }

        #[test]
        fn the_result_does_not_depend_on_how_readings_are_bundled(
            rules in rules(),
            bundle in readings(),
            percent in 0..=100_usize,
        ) {
            let at_once = after(&rules, &bundle);
            let mut parts = rules;
            for half in [
                part(&bundle, |len| 0..cut(len, percent)),
                part(&bundle, |len| cut(len, percent)..len),
            ] {
                parts = after(&parts, &half);
            }
            prop_assert_eq!(parts, at_once);
        }

        #[test]
        fn judging_again_returns_the_changes_that_were_not_committed(
            rules in rules(),
            bundle in readings(),
            percent in 0..=100_usize,
        ) {
            let transitions = judge_without_watermarks(&rules, &bundle).transitions;
            let (done, remaining) = transitions.split_at(cut(transitions.len(), percent));
            let half = apply_without_watermarks(&rules, done, &bundle);
            prop_assert_eq!(judge_without_watermarks(&half, &bundle).transitions, remaining);
        }

        #[test]
        fn every_transition_is_correct_and_changes_the_state(rules in rules(), bundle in readings()) {
            let mut states: Vec<_> = rules.iter().map(|rule| rule.state).collect();
            for Transition { rule, at, value, change, .. } in judge_without_watermarks(&rules, &bundle).transitions {
                let Sensor { min, max, .. } = rules[rule].sensor;
                match change {
                    Change::Breached { limit: Limit::Min, threshold } => {
                        prop_assert_eq!(min, Some(threshold));
                        prop_assert!(value < threshold);
                    }
                    Change::Breached { limit: Limit::Max, threshold } => {
                        prop_assert_eq!(max, Some(threshold));
                        prop_assert!(value > threshold);
                    }
                    Change::BackToNormal { breached_at } => {
                        let since = match states[rule] {
                            State::Breached { breached_at, .. } => Some(breached_at),
                            State::Normal => None,
                        };
                        prop_assert_eq!(since, Some(breached_at));
                        prop_assert!(min.is_none_or(|min| value > min));
                        prop_assert!(max.is_none_or(|max| value < max));
                    }
                }
                prop_assert_ne!(states[rule], change.state(at));
                states[rule] = change.state(at);
            }
        }

        #[test]
        fn every_breach_can_end(rules in rules(), bundle in readings()) {
            for Rule { sensor, state, .. } in after(&rules, &bundle) {
                let normal = match (sensor.min, sensor.max) {
                    (Some(min), Some(max)) => f64::midpoint(min, max),
                    (Some(min), None) => min + 1.0,
                    (None, max) => max.expect("a limit") - 1.0,
                };
                let back = Limits::of(&sensor).change(state, normal);
                prop_assert_eq!(back.is_some(), state != State::Normal);
            }
        }
    }
}
