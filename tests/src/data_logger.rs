//! A station's data logger. It sends the bundles of a day, optionally late and repeated.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail};
use contracts::readings::Bundle;

use crate::{Stack, api::Call};

/// Returns the order in which `count` bundles are sent over a bad connection. A bundle in `late` is sent after its
/// successor. A bundle in `twice` is sent twice in a row. No two bundles in `late` may be neighbours.
#[must_use]
pub fn order(count: usize, late: &BTreeSet<usize>, twice: &BTreeSet<usize>) -> Vec<usize> {
    let mut order: Vec<_> = (0..count).collect();
    for index in late.iter().filter(|index| **index + 1 < count) {
        order.swap(*index, index + 1);
    }
    let times = |index: usize| if twice.contains(&index) { 2 } else { 1 };
    order.into_iter().flat_map(|index| std::iter::repeat_n(index, times(index))).collect()
}

/// Splits the order into calls of at most `max` bundles. A call contains a bundle only once.
#[must_use]
pub fn calls(order: &[usize], max: usize) -> Vec<Vec<usize>> {
    let mut calls: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match calls.last_mut() {
            Some(call) if call.len() < max && !call.contains(index) => call.push(*index),
            _ => calls.push(vec![*index]),
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
