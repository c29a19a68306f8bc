//! Random numbers from a seed. The same seed results in the same run.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// The number of simulations that run concurrently.
const THREADS: usize = 2;

/// Runs the simulation with the seeds 1 to `last` and returns the results in any order. If the environment variable
/// `SEED` is set, only that seed runs.
///
/// # Panics
/// If a simulation panics. The seed is printed.
pub fn seeds<T: Send>(last: u64, simulation: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let only = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let (first, last) = only.map_or((1, last), |seed| (seed, seed));
    let next = AtomicU64::new(first);
    let results = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| simulation(seed))) {
                Ok(result) => results.lock().expect("the results").push(result),
                Err(panic) => {
                    next.store(last + 1, Ordering::Relaxed);
                    eprintln!("seed {seed} failed; run it with SEED={seed}");
                    resume_unwind(panic);
                }
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    });
    results.into_inner().expect("the results")
}

/// Returns the number of seeds that a simulation runs: `quick`, or `full` if the environment variable `PROOFS` is set, as
/// `make proofs` does.
#[must_use]
pub fn seed_count(quick: u64, full: u64) -> u64 {
    if std::env::var_os("PROOFS").is_some() { full } else { quick }
}

/// Returns whether all seeds run. Only then every possible event is expected to occur.
#[must_use]
pub fn all_seeds() -> bool {
    std::env::var_os("SEED").is_none()
}

/// The generator `SplitMix64`.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Creates a generator with this seed.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a random number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Returns a number from 0 that is less than `bound`. Returns 0 if the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is about bound / 2^64.
        u64::try_from((u128::from(self.number()) * u128::from(bound)) >> 64).unwrap_or_default()
    }

    /// Returns an index into a sequence of this length.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }

    /// Returns a number from `min` to `max`, inclusive.
    pub fn in_range(&mut self, min: usize, max: usize) -> usize {
        min + self.index(max - min + 1)
    }

    /// Returns `true` with a probability of `percent` %.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Returns one of the elements.
    ///
    /// # Panics
    /// If there are no elements.
    pub fn pick<'a, T>(&mut self, elements: &'a [T]) -> &'a T {
        &elements[self.index(elements.len())]
    }

    /// Returns another generator. Its use does not change the numbers that this one returns.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.number())
    }
}

/// Maps a number to a pseudo-random one: the output function of `SplitMix64`.
#[must_use]
pub fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let numbers = |seed| {
            let mut rng = Rng::from_seed(seed);
            [rng.number(), rng.below(10), rng.fork().number(), rng.number()]
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        // The first published output of the generator for the seed 0.
        assert_eq!(Rng::from_seed(0).number(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn every_value_of_a_range_occurs() {
        let mut rng = Rng::from_seed(7);
        let mut seen = [0; 4];
        for _ in 0..1000 {
            seen[rng.in_range(1, 3)] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|&times| times > 250), "{seen:?}");
    }
}
