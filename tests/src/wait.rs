//! Polling with a timeout. The error message contains what was seen last.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// The timeout for things that take a few seconds, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// The interval between polls. The emulator shares the machine with the functions.
const PAUSE: Duration = Duration::from_millis(150);

/// The result of a poll.
pub enum Look<T, S> {
    /// The expected state.
    Found(T),
    /// Another state, for the message if the timeout expires.
    Saw(S),
}

/// Polls with `look` until it returns [`Look::Found`] or the timeout expires. An error ends the polling.
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

/// Polls until a condition holds, like [`until`]. `look` returns whether it holds, and what it saw.
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
