//! The log lines that code under test writes.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tracing::Level;

/// Returns the result of `work` and the log lines that it wrote on this thread, as JSON. The level is `DEBUG`, the lowest one
/// that a function can have.
///
/// # Panics
/// If a line is not text.
pub async fn logged<T>(work: impl Future<Output = T>) -> (T, Vec<String>) {
    let lines = Lines::default();
    let writer = lines.clone();
    let logs = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_max_level(Level::DEBUG)
        .with_writer(move || writer.clone());
    let outcome = {
        let _logging = tracing::subscriber::set_default(logs.finish());
        work.await
    };
    let bytes = std::mem::take(&mut *lines.0.lock().expect("the lines"));
    let text = String::from_utf8(bytes).expect("text");
    (outcome, text.lines().map(str::to_owned).collect())
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("the lines").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
