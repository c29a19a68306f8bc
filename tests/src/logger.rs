//! A station's data logger: sends the bundles of a day, as a good line does or as a bad one.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail};
use contracts::readings::Bundle;

use crate::{Stack, api::Call};

/// The order in which `count` bundles are sent on a bad line: those in `late` (no two of them
/// neighbours) after the one that follows them, and those in `twice` once more, right behind.
#[must_use]
pub fn order(count: usize, late: &BTreeSet<usize>, twice: &BTreeSet<usize>) -> Vec<usize> {
    let mut places: Vec<_> = (0..count).collect();
    for place in late.iter().filter(|place| **place + 1 < count) {
        places.swap(*place, place + 1);
    }
    let times = |place: usize| if twice.contains(&place) { 2 } else { 1 };
    places.into_iter().flat_map(|place| std::iter::repeat_n(place, times(place))).collect()
}

/// That order cut into calls of at most `most` bundles; a list holds a bundle once.
#[must_use]
pub fn calls(order: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut calls: Vec<Vec<usize>> = Vec::new();
    for place in order {
        match calls.last_mut() {
            Some(call) if call.len() < most && !call.contains(place) => call.push(*place),
            _ => calls.push(vec![*place]),
        }
    }
    calls
}

/// The first pause before a retry; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(200);
const MOST_RETRIES: u32 = 5;

/// Sends bundles in one call, one by itself and several as a list, until they are accepted; how
/// often that was tried again. Sending again does no harm.
pub async fn send(stack: &Stack, bundles: &[&Bundle]) -> Result<u32> {
    let body = match bundles {
        [bundle] => serde_json::to_string(bundle)?,
        bundles => serde_json::to_string(bundles)?,
    };
    let (mut retries, mut pause) = (0, PAUSE);
    loop {
        let answer = stack.call(Call::post_readings(body.clone())).await?;
        match answer.status {
            202 => return Ok(retries),
            429 | 503 if retries < MOST_RETRIES => {}
            _ => bail!("POST /readings, retried {retries} times, was answered with {answer}"),
        }
        tokio::time::sleep(pause).await;
        retries += 1;
        pause *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_sends_some_twice_and_some_late() {
        let order = order(6, &BTreeSet::from([1, 5]), &BTreeSet::from([0, 2]));
        assert_eq!(order, [0, 0, 2, 2, 1, 3, 4, 5]);
    }

    #[test]
    fn a_call_holds_a_bundle_once() {
        assert_eq!(calls(&[0, 1, 1, 2, 3, 4], 3), [vec![0, 1], vec![1, 2, 3], vec![4]]);
    }
}
