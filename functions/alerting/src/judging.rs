//! Decides which changes of state a bundle's samples cause. The functions here are pure; the caller commits.
//!
//! The next state depends on the current state and one sample only; samples are not counted. Therefore judging is
//! idempotent: samples up to the last change are skipped, and judging any part of the later ones again changes
//! nothing.

use std::collections::HashMap;

use contracts::{Sensor, SensorId, Timestamp, events::Limit, readings::Bundle, sample::Quality};

use crate::{Rule, State};

/// The time of the last judged sample of each sensor.
pub type Watermarks = HashMap<SensorId, Timestamp>;

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
    /// The value of that sample.
    pub value: f64,
    /// The change.
    pub change: Change,
}

/// The result of judging a bundle.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// The changes, grouped by sensor, in the order of time.
    pub transitions: Vec<Transition>,
    /// The number of samples that were compared with limits.
    pub judged: usize,
    /// The number of samples that were late or repeated.
    pub late: usize,
}

/// Judges the samples of sensors that have rules. Skips samples that are not later than the sensor's last change or
/// its watermark.
#[must_use]
pub fn judge(rules: &[Rule], bundle: &Bundle, watermarks: &Watermarks) -> Judgement {
    let mut judgement = Judgement::default();
    for series in &bundle.series {
        let sensor_id = series.sensor_id;
        let watched = rules.iter().enumerate().find(|(_, rule)| rule.sensor.sensor_id == sensor_id);
        let Some((index, rule)) = watched else { continue };
        let last_judged = rule.changed_at.max(watermarks.get(&sensor_id).copied());
        // Times are stored in milliseconds.
        let last_judged = last_judged.map(Timestamp::millis);
        let late = series.samples.partition_point(|sample| Some(sample.at.millis()) <= last_judged);
        judgement.late += late;
        judgement.judged += series.samples.len() - late;
        let mut state = rule.state;
        for sample in &series.samples[late..] {
            let (at, Some(value)) = (sample.at, sample.counted(Quality::Usable)) else { continue };
            if let Some(change) = change(&rule.sensor, state, value) {
                state = change.state(at);
                judgement.transitions.push(Transition { rule: index, at, value, change });
            }
        }
    }
    judgement
}

/// Returns the rules after the transitions.
#[must_use]
pub fn apply(rules: &[Rule], transitions: &[Transition]) -> Vec<Rule> {
    let mut rules = rules.to_vec();
    for Transition { rule, at, change, .. } in transitions {
        let rule = &mut rules[*rule];
        rule.state = change.state(*at);
        rule.changed_at = Some(*at);
    }
    rules
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

fn change(sensor: &Sensor, state: State, value: f64) -> Option<Change> {
    match (state, beyond(sensor, value)) {
        (State::Breached { limit, .. }, Some((beyond, _))) if limit == beyond => None,
        (_, Some((limit, threshold))) => Some(Change::Breached { limit, threshold }),
        (State::Breached { breached_at, .. }, None) => {
            is_back(sensor, value).then_some(Change::BackToNormal { breached_at })
        }
        (State::Normal, None) => None,
    }
}

/// Returns the limit that the value exceeds, with the limit's value.
fn beyond(sensor: &Sensor, value: f64) -> Option<(Limit, f64)> {
    match (sensor.min, sensor.max) {
        (Some(min), _) if value < min => Some((Limit::Min, min)),
        (_, Some(max)) if value > max => Some((Limit::Max, max)),
        _ => None,
    }
}

/// Returns whether the value is within both limits by at least the deadband. The deadband keeps readings that
/// scatter around a limit from causing many breaches.
fn is_back(sensor: &Sensor, value: f64) -> bool {
    let mut deadband = sensor.metric.deadband(&sensor.unit).unwrap_or_default();
    if let (Some(min), Some(max)) = (sensor.min, sensor.max) {
        // Between narrow limits the deadband is reduced, so that half of the range is still normal.
        deadband = deadband.min((max - min) / 4.0);
    }
    sensor.min.is_none_or(|min| value >= min + deadband)
        && sensor.max.is_none_or(|max| value <= max - deadband)
}

#[cfg(test)]
mod tests {
    use contracts::{Metric, readings::Series, sample::Sample, sensor::SensorMetadata};
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

    fn judge_without_watermarks(rules: &[Rule], bundle: &Bundle) -> Judgement {
        judge(rules, bundle, &Watermarks::new())
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
        let judgement = judge_without_watermarks(&rules, &bundle(&[[20.0, 31.0, 20.0]]));
        let (breached_at, back_at) = (noon(1), noon(2));
        let breach = Change::Breached { limit: Limit::Max, threshold: 30.0 };
        let back = Change::BackToNormal { breached_at };
        let transitions = vec![
            Transition { rule: 0, at: breached_at, value: 31.0, change: breach },
            Transition { rule: 0, at: back_at, value: 20.0, change: back },
        ];
        let half = apply(&rules, &transitions[..1]);
        assert_eq!(half[0].state, State::Breached { limit: Limit::Max, breached_at });
        assert_eq!(half[0].changed_at, Some(breached_at));
        let after = apply(&rules, &transitions);
        assert_eq!((after[0].state, after[0].changed_at), (State::Normal, Some(back_at)));
        assert_eq!(judgement, Judgement { transitions, judged: 3, late: 0 });
    }

    #[test]
    fn a_sample_not_later_than_the_last_change_or_the_watermark_is_late() {
        let mut rules = [rule(0, None, Some(30.0))];
        let above_limit = bundle(&[[31.0; 5]]);
        let watermark = |seconds| Watermarks::from([(rules[0].sensor.sensor_id, noon(seconds))]);
        let watermarks = [watermark(1), watermark(4)];
        let judged = judge(&rules, &above_limit, &watermarks[0]);
        assert_eq!((judged.judged, judged.late), (3, 2));
        assert_eq!(judged.transitions[0].at, noon(2));
        assert_eq!(judge(&rules, &above_limit, &watermarks[1]).late, 5);
        // The later of both times counts. Fractions of milliseconds do not count.
        rules[0].changed_at = Some(noon(3));
        assert_eq!(judge(&rules, &above_limit, &watermarks[0]).late, 4);
        assert_eq!(judge(&rules, &above_limit, &watermarks[1]).late, 5);
        let mut sub_millisecond = above_limit.clone();
        sub_millisecond.series[0].samples =
            vec![Sample::new("2026-01-01T12:00:03.0004Z".parse().expect("a time"), 31.0)];
        assert_eq!(
            judge_without_watermarks(&rules, &sub_millisecond),
            Judgement { late: 1, ..Judgement::default() }
        );
    }

    #[test]
    fn sensors_without_a_rule_are_not_judged() {
        let rules = [rule(1, None, Some(30.0))];
        let judgement = judge_without_watermarks(&rules, &bundle(&[vec![99.0; 3], vec![99.0]]));
        assert_eq!((judgement.judged, judgement.late), (1, 0));
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
            let mut after = rules;
            for half in [
                part(&bundle, |len| 0..cut(len, first)),
                part(&bundle, |len| cut(len, first)..len),
            ] {
                after = apply(&after, &judge_without_watermarks(&after, &half).transitions);
            }
            let repeated = [
                bundle.clone(),
                part(&bundle, |len| 0..cut(len, to)),
                part(&bundle, |len| cut(len, from)..len),
                part(&bundle, |len| cut(len, from.min(to))..cut(len, from.max(to))),
            ];
            for part in repeated {
                prop_assert_eq!(judge_without_watermarks(&after, &part).transitions, []);
            }
        }

        #[test]
        fn the_result_does_not_depend_on_how_readings_are_bundled(
            rules in rules(),
            bundle in readings(),
            percent in 0..=100_usize,
        ) {
            let at_once = apply(&rules, &judge_without_watermarks(&rules, &bundle).transitions);
            let mut parts = rules;
            for half in [
                part(&bundle, |len| 0..cut(len, percent)),
                part(&bundle, |len| cut(len, percent)..len),
            ] {
                parts = apply(&parts, &judge_without_watermarks(&parts, &half).transitions);
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
            prop_assert_eq!(judge_without_watermarks(&apply(&rules, done), &bundle).transitions, remaining);
        }

        #[test]
        fn every_transition_is_correct_and_changes_the_state(rules in rules(), bundle in readings()) {
            let mut states: Vec<_> = rules.iter().map(|rule| rule.state).collect();
            for Transition { rule, at, value, change } in judge_without_watermarks(&rules, &bundle).transitions {
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
            let after = apply(&rules, &judge_without_watermarks(&rules, &bundle).transitions);
            for Rule { sensor, state, .. } in after {
                let normal = match (sensor.min, sensor.max) {
                    (Some(min), Some(max)) => f64::midpoint(min, max),
                    (Some(min), None) => min + 1.0,
                    (None, max) => max.expect("a limit") - 1.0,
                };
                let back = change(&sensor, state, normal);
                prop_assert_eq!(back.is_some(), state != State::Normal);
            }
        }
    }
}
