//! Randomness that a seed decides: the same seed makes the same run.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

/// Simulations that run at a time.
const THREADS: usize = 2;

/// Runs the simulations of the seeds 1 to `last`, and gives what each comes to, in no order. The
/// environment variable `SEED` names a seed to run alone.
///
/// # Panics
/// Where one does; the seed is told.
pub fn seeds<T: Send>(last: u64, simulation: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let alone = std::env::var("SEED").ok().map(|seed| seed.parse().expect("SEED is a number"));
    let (first, last) = alone.map_or((1, last), |seed| (seed, seed));
    let next = AtomicU64::new(first);
    let results = Mutex::new(Vec::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last {
                return;
            }
            match catch_unwind(AssertUnwindSafe(|| simulation(seed))) {
                Ok(result) => results.lock().expect("no panic while pushing").push(result),
                Err(panic) => {
                    next.store(last + 1, Ordering::Relaxed);
                    eprintln!("seed {seed} failed; SEED={seed} runs it alone");
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
    results.into_inner().expect("no panic while pushing")
}

/// Whether all seeds run, not one alone: only then everything that can happen did.
#[must_use]
pub fn all_seeds() -> bool {
    std::env::var_os("SEED").is_none()
}

/// The generator `SplitMix64`.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Of that seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from 0, less than `bound`; 0 where the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is some bound / 2^64.
        u64::try_from((u128::from(self.number()) * u128::from(bound)) >> 64).unwrap_or_default()
    }

    /// A place in something of that length.
    pub fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }

    /// A number from `least` to `most`.
    pub fn within(&mut self, least: usize, most: usize) -> usize {
        least + self.place(most - least + 1)
    }

    /// Yes in so many of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of them.
    ///
    /// # Panics
    /// Where there is none.
    pub fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.place(among.len())]
    }

    /// Another generator: what it is asked for does not change what this one gives next.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.number())
    }
}

/// Scatters a number over all numbers.
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
    fn a_seed_decides_everything() {
        let numbers = |seed| {
            let mut chance = Chance::of(seed);
            [chance.number(), chance.below(10), chance.fork().number(), chance.number()]
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        // The generator's published first number of the seed 0.
        assert_eq!(Chance::of(0).number(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn every_value_of_a_range_comes() {
        let mut chance = Chance::of(7);
        let mut seen = [0; 4];
        for _ in 0..1000 {
            seen[chance.within(1, 3)] += 1;
        }
        assert_eq!(seen[0], 0);
        assert!(seen[1..].iter().all(|&times| times > 250), "{seen:?}");
    }
}
