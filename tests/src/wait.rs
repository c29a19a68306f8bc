//! Polling with a timeout. The error message contains the last state that was seen.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// The timeout for things that take a few seconds, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// The timeout for a failure to be recorded. If a record of readings names a sensor that may be registered soon, it is
/// first on hold for `ReadingsHoldSeconds`.
pub const FAILURE_TIMEOUT: Duration = Duration::from_mins(3);

/// The interval between polls. The emulator shares the machine with the functions.
const POLL_INTERVAL: Duration = Duration::from_millis(150);

/// The result of a poll.
pub enum Poll<T, S> {
    /// The expected state.
    Ready(T),
    /// Another state, for the message if the timeout expires.
    Pending(S),
}

/// Polls with `poll` until it returns [`Poll::Ready`] or the timeout expires. An error ends the polling.
pub async fn until<T, S: Display>(
    what: &str,
    timeout: Duration,
    poll: impl AsyncFn() -> Result<Poll<T, S>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = match poll().await? {
            Poll::Ready(value) => return Ok(value),
            Poll::Pending(state) => state,
        };
        if started.elapsed() > timeout {
            bail!("timed out after {} s waiting for {what}; last state: {last}", timeout.as_secs());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Polls until a condition holds, like [`until`]. `poll` returns whether it holds, and the current state.
pub async fn until_true<S: Display>(
    what: &str,
    timeout: Duration,
    poll: impl AsyncFn() -> Result<(bool, S)>,
) -> Result<()> {
    until(what, timeout, async || {
        let (holds, state) = poll().await?;
        Ok(if holds { Poll::Ready(()) } else { Poll::Pending(state) })
    })
    .await
}
