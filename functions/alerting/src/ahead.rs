//! The bundles of a logger whose clock is fast.

use contracts::{Timestamp, readings::BundleId};
use serde::{Deserialize, Serialize};

/// The maximum number of bundles that are remembered for a sensor. A logger whose clock is 15 minutes fast and that
/// sends a bundle each minute has 15.
const MAX_BUNDLES: usize = 16;

/// Judged bundles with readings of a sensor that were ahead of the bundle's arrival.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ahead(Vec<AheadBundle>);

/// A bundle and the time of its last judged reading of the sensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AheadBundle {
    bundle_id: BundleId,
    judged_to: Timestamp,
}

impl Ahead {
    /// Returns whether there are no such bundles.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the time of the bundle's last judged reading.
    #[must_use]
    pub fn judged_to(&self, bundle: &BundleId) -> Option<Timestamp> {
        self.0.iter().find(|judged| judged.bundle_id == *bundle).map(|judged| judged.judged_to)
    }

    /// Adds a bundle that was judged up to this time. If there are too many, the one with the earliest time is forgotten.
    pub fn add(&mut self, bundle: &BundleId, judged_to: Timestamp) {
        if let Some(known) = self.0.iter_mut().find(|judged| judged.bundle_id == *bundle) {
            known.judged_to = known.judged_to.max(judged_to);
            return;
        }
        self.0.push(AheadBundle { bundle_id: bundle.clone(), judged_to });
        if self.0.len() > MAX_BUNDLES {
            self.0.sort_unstable_by_key(|judged| judged.judged_to);
            self.0.remove(0);
        }
    }

    /// Adds the bundles of another list.
    pub fn add_all(&mut self, other: &Self) {
        for AheadBundle { bundle_id, judged_to } in &other.0 {
            self.add(bundle_id, *judged_to);
        }
    }

    /// Forgets the bundles without a judged reading after this time.
    pub fn forget_until(&mut self, time: Timestamp) {
        self.0.retain(|judged| judged.judged_to > time);
    }
}

#[cfg(test)]
mod tests {
    use testkit::sample::noon;

    use super::*;

    fn id(number: usize) -> BundleId {
        format!("b-{number}").parse().expect("an id")
    }

    #[test]
    fn a_bundle_is_known_until_its_last_judged_reading_is_passed() {
        let mut ahead = Ahead::default();
        ahead.add(&id(1), noon(10));
        ahead.add(&id(2), noon(20));
        ahead.add(&id(1), noon(15));
        ahead.add(&id(1), noon(5));
        let mut other = Ahead::default();
        other.add(&id(3), noon(30));
        ahead.add_all(&other);
        let known = |ahead: &Ahead| [1, 2, 3].map(|number| ahead.judged_to(&id(number)));
        assert_eq!(known(&ahead), [Some(noon(15)), Some(noon(20)), Some(noon(30))]);
        ahead.forget_until(noon(20));
        assert_eq!(known(&ahead), [None, None, Some(noon(30))]);
    }

    #[test]
    fn the_number_of_bundles_is_limited() {
        let mut ahead = Ahead::default();
        ahead.add(&id(0), noon(100));
        for (number, seconds) in (1..=MAX_BUNDLES).zip(0..) {
            ahead.add(&id(number), noon(seconds));
        }
        assert_eq!(ahead.judged_to(&id(1)), None);
        let all = (0..=MAX_BUNDLES).filter(|number| ahead.judged_to(&id(*number)).is_some());
        assert_eq!(all.count(), MAX_BUNDLES);
    }
}
