//! Waiting, with an end, and an account of what was seen when it comes.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// For what takes a few seconds, on a machine that has more to do.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// Between two looks. The emulator shares the machine with what is waited for.
const PAUSE: Duration = Duration::from_millis(150);

/// What a look at something found.
pub enum Look<T, S> {
    /// What was waited for.
    Found(T),
    /// Something else: what there is instead, for the message should it stay like that.
    Saw(S),
}

/// Looks until `look` finds what is waited for, or the time is up; an error ends it at once.
pub async fn until<T, S: Display>(
    what: &str,
    patience: Duration,
    look: impl AsyncFn() -> Result<Look<T, S>>,
) -> Result<T> {
    let begun = Instant::now();
    loop {
        let saw = match look().await? {
            Look::Found(found) => return Ok(found),
            Look::Saw(saw) => saw,
        };
        if begun.elapsed() > patience {
            bail!("waited {} s for {what}; at last there was: {saw}", patience.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// [`until`] a condition holds; `look` tells whether it does, and what it saw.
pub async fn until_true<S: Display>(
    what: &str,
    patience: Duration,
    look: impl AsyncFn() -> Result<(bool, S)>,
) -> Result<()> {
    until(what, patience, async || {
        let (holds, saw) = look().await?;
        Ok(if holds { Look::Found(()) } else { Look::Saw(saw) })
    })
    .await
}
