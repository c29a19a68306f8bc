//! What a bundle's samples change: pure, and committed elsewhere.
//!
//! A state and a sample make the next state, and nothing else does: no samples are counted. So what
//! left a state as it is leaves it again: judging once more what came after the last change, all of
//! it or any part, changes nothing.

use std::collections::HashMap;

use contracts::{
    Sensor, SensorId, Timestamp,
    events::Limit,
    readings::{Bundle, Sample},
};

use crate::{Rule, State};

/// Up to which sample each sensor was judged.
pub type Watermarks = HashMap<SensorId, Timestamp>;

/// What a sample does to its sensor's state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// It went beyond a limit.
    Breached {
        /// Which.
        limit: Limit,
        /// The limit's value, in the sensor's unit.
        threshold: f64,
    },
    /// It is back within both.
    BackToNormal {
        /// When the sample was taken that had gone beyond.
        breached_at: Timestamp,
    },
}

/// A change of one sensor's state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transition {
    /// The sensor's place among the rules, from 0.
    pub rule: usize,
    /// What brought it.
    pub sample: Sample,
    /// What it is.
    pub change: Change,
}

/// What a bundle comes to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// Sensor by sensor, in the order of time.
    pub transitions: Vec<Transition>,
    /// How many samples were held against limits.
    pub judged: usize,
    /// How many came too late for that, or once more.
    pub late: usize,
}

/// Judges the samples of sensors that have rules, but for those that are not later than the
/// sensor's last change or its watermark.
#[must_use]
pub fn judge(rules: &[Rule], bundle: &Bundle, watermarks: &Watermarks) -> Judgement {
    let mut judgement = Judgement::default();
    for series in &bundle.series {
        let sensor_id = series.sensor_id;
        let watched = rules.iter().enumerate().find(|(_, rule)| rule.sensor.sensor_id == sensor_id);
        let Some((place, rule)) = watched else { continue };
        let known = rule.changed_at.max(watermarks.get(&sensor_id).copied());
        // In milliseconds, as times are kept.
        let known = known.map(Timestamp::millis);
        let late = series.samples.partition_point(|Sample(at, _)| Some(at.millis()) <= known);
        judgement.late += late;
        judgement.judged += series.samples.len() - late;
        let mut state = rule.state;
        for &sample in &series.samples[late..] {
            if let Some(change) = change(&rule.sensor, state, sample.1) {
                state = change.state(sample);
                judgement.transitions.push(Transition { rule: place, sample, change });
            }
        }
    }
    judgement
}

/// The rules after these transitions.
#[must_use]
pub fn apply(rules: &[Rule], transitions: &[Transition]) -> Vec<Rule> {
    let mut rules = rules.to_vec();
    for Transition { rule, sample, change } in transitions {
        let rule = &mut rules[*rule];
        rule.state = change.state(*sample);
        rule.changed_at = Some(sample.0);
    }
    rules
}

impl Change {
    /// The state that the sample brought about.
    fn state(self, sample: Sample) -> State {
        match self {
            Self::Breached { limit, .. } => State::Breached { limit, breached_at: sample.0 },
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

/// The limit that the value is beyond, and that limit's value.
fn beyond(sensor: &Sensor, value: f64) -> Option<(Limit, f64)> {
    match (sensor.min, sensor.max) {
        (Some(min), _) if value < min => Some((Limit::Min, min)),
        (_, Some(max)) if value > max => Some((Limit::Max, max)),
        _ => None,
    }
}

/// Whether the value is within both limits by the deadband: a reading that scatters about a limit
/// is one breach, not many.
fn is_back(sensor: &Sensor, value: f64) -> bool {
    let mut band = sensor.metric.deadband(&sensor.unit).unwrap_or_default();
    if let (Some(min), Some(max)) = (sensor.min, sensor.max) {
        // Between narrow limits, half of the room is still normal.
        band = band.min((max - min) / 4.0);
    }
    sensor.min.is_none_or(|min| value >= min + band)
        && sensor.max.is_none_or(|max| value <= max - band)
}

#[cfg(test)]
mod tests {
    use contracts::{Metric, readings::Series};
    use proptest::{prelude::*, test_runner::RngSeed};
    use testkit::sample::{noon, saga};

    use super::*;

    /// A thermometer, with a deadband of half a degree.
    fn rule(index: usize, min: Option<f64>, max: Option<f64>) -> Rule {
        Rule::new(Sensor {
            sensor_id: SensorId::of(saga("a").onboarding_id, index),
            metric: Metric::AirTemperature,
            unit: "Cel".to_owned(),
            min,
            max,
        })
    }

    /// A value a second from noon on, for each of the first sensors.
    fn bundle<V: AsRef<[f64]>>(series: &[V]) -> Bundle {
        let series = series.iter().enumerate().map(|(index, values)| Series {
            sensor_id: SensorId::of(saga("a").onboarding_id, index),
            samples: (0..).map(noon).zip(values.as_ref()).map(|(at, v)| Sample(at, *v)).collect(),
        });
        Bundle {
            bundle_id: "b-1".parse().expect("an id"),
            site_id: saga("a").site_id,
            series: series.collect(),
        }
    }

    /// Of each series only those samples.
    fn part(bundle: &Bundle, of: impl Fn(usize) -> std::ops::Range<usize>) -> Bundle {
        let mut bundle = bundle.clone();
        for series in &mut bundle.series {
            let range = of(series.samples.len());
            series.samples = series.samples[range].to_vec();
        }
        bundle
    }

    fn anew(rules: &[Rule], bundle: &Bundle) -> Judgement {
        judge(rules, bundle, &Watermarks::new())
    }

    /// What became of one sensor, and by which of the values (from 0).
    fn story(rule: Rule, values: &[f64]) -> Vec<(i64, &'static str)> {
        let transitions = anew(&[rule], &bundle(&[values])).transitions.into_iter();
        let told = transitions.map(|Transition { sample: Sample(at, _), change, .. }| {
            let told = match change {
                Change::Breached { limit: Limit::Min, .. } => "low",
                Change::Breached { limit: Limit::Max, .. } => "high",
                Change::BackToNormal { .. } => "normal",
            };
            ((at.millis() - noon(0).millis()) / 1000, told)
        });
        told.collect()
    }

    #[test]
    fn a_value_beyond_a_limit_is_a_breach_and_one_at_it_is_none() {
        let both = || rule(0, Some(-10.0), Some(30.0));
        assert_eq!(story(both(), &[-10.0, 0.0, 30.0]), []);
        assert_eq!(story(both(), &[20.0, 30.1, 31.0]), [(1, "high")]);
        assert_eq!(story(both(), &[20.0, -10.1, -99.0]), [(1, "low")]);
        assert_eq!(story(rule(0, None, Some(30.0)), &[-99.0, 31.0]), [(1, "high")]);
        assert_eq!(story(rule(0, Some(-10.0), None), &[99.0, -11.0]), [(1, "low")]);
    }

    #[test]
    fn only_a_value_back_by_the_deadband_is_normal_again() {
        let both = || rule(0, Some(-10.0), Some(30.0));
        assert_eq!(story(both(), &[31.0, 29.6, 30.4, 29.5]), [(0, "high"), (3, "normal")]);
        assert_eq!(story(both(), &[-11.0, -9.6, -10.4, -9.5]), [(0, "low"), (3, "normal")]);
        let one = || rule(0, None, Some(30.0));
        assert_eq!(story(one(), &[31.0, 29.6, -99.0]), [(0, "high"), (2, "normal")]);
    }

    #[test]
    fn between_narrow_limits_the_deadband_leaves_room_for_normal() {
        let narrow = rule(0, Some(20.0), Some(21.0));
        let high = [(0, "high"), (2, "normal")];
        assert_eq!(story(narrow.clone(), &[21.5, 20.8, 20.75]), high);
        assert_eq!(story(narrow, &[19.5, 20.2, 20.25]), [(0, "low"), (2, "normal")]);
    }

    #[test]
    fn from_one_limit_to_beyond_the_other_is_another_breach() {
        let both = rule(0, Some(-10.0), Some(30.0));
        assert_eq!(
            story(both, &[31.0, -11.0, 31.0, 20.0]),
            [(0, "high"), (1, "low"), (2, "high"), (3, "normal")]
        );
    }

    #[test]
    fn a_transition_tells_what_the_event_needs() {
        let rules = [rule(0, Some(-10.0), Some(30.0))];
        let judgement = anew(&rules, &bundle(&[[20.0, 31.0, 20.0]]));
        let (breached_at, back_at) = (noon(1), noon(2));
        let breach = Change::Breached { limit: Limit::Max, threshold: 30.0 };
        let back = Change::BackToNormal { breached_at };
        let transitions = vec![
            Transition { rule: 0, sample: Sample(breached_at, 31.0), change: breach },
            Transition { rule: 0, sample: Sample(back_at, 20.0), change: back },
        ];
        let half = apply(&rules, &transitions[..1]);
        assert_eq!(half[0].state, State::Breached { limit: Limit::Max, breached_at });
        assert_eq!(half[0].changed_at, Some(breached_at));
        let after = apply(&rules, &transitions);
        assert_eq!((after[0].state, after[0].changed_at), (State::Normal, Some(back_at)));
        assert_eq!(judgement, Judgement { transitions, judged: 3, late: 0 });
    }

    #[test]
    fn what_is_not_later_than_the_last_change_or_the_watermark_is_late() {
        let mut rules = [rule(0, None, Some(30.0))];
        let hot = bundle(&[[31.0; 5]]);
        let watermark = |seconds| Watermarks::from([(rules[0].sensor.sensor_id, noon(seconds))]);
        let watermarks = [watermark(1), watermark(4)];
        let judged = judge(&rules, &hot, &watermarks[0]);
        assert_eq!((judged.judged, judged.late), (3, 2));
        assert_eq!(judged.transitions[0].sample.0, noon(2));
        assert_eq!(judge(&rules, &hot, &watermarks[1]).late, 5);
        // The later of the two counts; fractions of milliseconds don't.
        rules[0].changed_at = Some(noon(3));
        assert_eq!(judge(&rules, &hot, &watermarks[0]).late, 4);
        assert_eq!(judge(&rules, &hot, &watermarks[1]).late, 5);
        let mut finer = hot.clone();
        finer.series[0].samples =
            vec![Sample("2026-01-01T12:00:03.0004Z".parse().expect("a time"), 31.0)];
        assert_eq!(anew(&rules, &finer), Judgement { late: 1, ..Judgement::default() });
    }

    #[test]
    fn sensors_without_a_rule_are_not_judged() {
        let rules = [rule(1, None, Some(30.0))];
        let judgement = anew(&rules, &bundle(&[vec![99.0; 3], vec![99.0]]));
        assert_eq!((judgement.judged, judgement.late), (1, 0));
        assert_eq!(judgement.transitions.len(), 1);
    }

    /// Limits of three sensors, wide, narrow, one only.
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

    /// Readings of them, about where the limits are, many of them exactly there.
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
        fn no_part_of_what_was_judged_changes_anything_when_it_comes_again(
            rules in rules(),
            bundle in readings(),
            first in 0..=100_usize,
            from in 0..=100_usize,
            to in 0..=100_usize,
        ) {
            // Judged in two bundles.
            let mut after = rules;
            for half in [
                part(&bundle, |len| 0..cut(len, first)),
                part(&bundle, |len| cut(len, first)..len),
            ] {
                after = apply(&after, &anew(&after, &half).transitions);
            }
            let again = [
                bundle.clone(),
                part(&bundle, |len| 0..cut(len, to)),
                part(&bundle, |len| cut(len, from)..len),
                part(&bundle, |len| cut(len, from.min(to))..cut(len, from.max(to))),
            ];
            for again in again {
                prop_assert_eq!(anew(&after, &again).transitions, []);
            }
        }

        #[test]
        fn how_readings_are_bundled_makes_no_difference(
            rules in rules(),
            bundle in readings(),
            place in 0..=100_usize,
        ) {
            let whole = apply(&rules, &anew(&rules, &bundle).transitions);
            let mut parts = rules;
            for half in [
                part(&bundle, |len| 0..cut(len, place)),
                part(&bundle, |len| cut(len, place)..len),
            ] {
                parts = apply(&parts, &anew(&parts, &half).transitions);
            }
            prop_assert_eq!(parts, whole);
        }

        #[test]
        fn what_was_not_committed_comes_of_judging_again(
            rules in rules(),
            bundle in readings(),
            place in 0..=100_usize,
        ) {
            let transitions = anew(&rules, &bundle).transitions;
            let (done, left) = transitions.split_at(cut(transitions.len(), place));
            prop_assert_eq!(anew(&apply(&rules, done), &bundle).transitions, left);
        }

        #[test]
        fn breach_and_return_take_turns_and_are_true(rules in rules(), bundle in readings()) {
            let mut states: Vec<_> = rules.iter().map(|rule| rule.state).collect();
            for Transition { rule, sample, change } in anew(&rules, &bundle).transitions {
                let Sensor { min, max, .. } = rules[rule].sensor;
                let Sample(_, value) = sample;
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
                prop_assert_ne!(states[rule], change.state(sample));
                states[rule] = change.state(sample);
            }
        }

        #[test]
        fn every_breach_can_end(rules in rules(), bundle in readings()) {
            let after = apply(&rules, &anew(&rules, &bundle).transitions);
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
