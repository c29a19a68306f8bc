//! A station's data logger. It sends the bundles of a day, optionally late and repeated.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail};
use contracts::readings::Bundle;

use crate::{Stack, api::Call};

/// Returns the order in which `count` bundles are sent over a bad connection. A bundle in `late` is sent after its
/// successor. A bundle in `twice` is sent twice in a row. No two bundles in `late` may be neighbours.
#[must_use]
pub fn order(count: usize, late: &BTreeSet<usize>, twice: &BTreeSet<usize>) -> Vec<usize> {
    let mut places: Vec<_> = (0..count).collect();
    for place in late.iter().filter(|place| **place + 1 < count) {
        places.swap(*place, place + 1);
    }
    let times = |place: usize| if twice.contains(&place) { 2 } else { 1 };
    places.into_iter().flat_map(|place| std::iter::repeat_n(place, times(place))).collect()
}

/// Splits the order into calls of at most `max` bundles. A call contains a bundle only once.
#[must_use]
pub fn calls(order: &[usize], max: usize) -> Vec<Vec<usize>> {
    let mut calls: Vec<Vec<usize>> = Vec::new();
    for place in order {
        match calls.last_mut() {
            Some(call) if call.len() < max && !call.contains(place) => call.push(*place),
            _ => calls.push(vec![*place]),
        }
    }
    calls
}

/// The delay before the first retry. It doubles with each retry.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(200);
const MAX_RETRIES: u32 = 5;

/// Sends bundles in one call until they are accepted: one bundle by itself, several as a list. Returns the number of
/// retries. Sending a bundle again has no further effect.
pub async fn send(stack: &Stack, bundles: &[&Bundle]) -> Result<u32> {
    let body = match bundles {
        [bundle] => serde_json::to_string(bundle)?,
        bundles => serde_json::to_string(bundles)?,
    };
    let (mut retries, mut delay) = (0, FIRST_RETRY_DELAY);
    loop {
        let response = stack.call(Call::post_readings(body.clone())).await?;
        match response.status {
            202 => return Ok(retries),
            429 | 503 if retries < MAX_RETRIES => {}
            _ => bail!("POST /readings returned {response} after {retries} retries"),
        }
        tokio::time::sleep(delay).await;
        retries += 1;
        delay *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_has_late_and_repeated_bundles() {
        let order = order(6, &BTreeSet::from([1, 5]), &BTreeSet::from([0, 2]));
        assert_eq!(order, [0, 0, 2, 2, 1, 3, 4, 5]);
    }

    #[test]
    fn a_call_contains_a_bundle_only_once() {
        assert_eq!(calls(&[0, 1, 1, 2, 3, 4], 3), [vec![0, 1], vec![1, 2, 3], vec![4]]);
    }
}
