//! Logs as JSON lines, and metrics in CloudWatch's embedded metric format. Both go to standard output.

use std::{io, sync::OnceLock};

use metrics_cloudwatch_embedded::{Builder, Collector};
use tracing_subscriber::filter::LevelFilter;

static METRICS: OnceLock<&'static Collector> = OnceLock::new();

/// Starts logs and metrics. A second call only logs a warning.
pub(crate) fn start() {
    // Lambda sets the variable from the function's LoggingConfig. One level applies to all modules: filters by module
    // need regular expressions, which add a third of a megabyte.
    let level = std::env::var("AWS_LAMBDA_LOG_LEVEL").unwrap_or_default();
    let logs = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_target(false)
        .with_max_level(parse_level(&level))
        .try_init();
    let function = std::env::var("AWS_LAMBDA_FUNCTION_NAME").unwrap_or_else(|_| "local".to_owned());
    let metrics = Builder::new()
        .cloudwatch_namespace("Fieldstation")
        .with_dimension("function", function)
        .init();
    match metrics {
        Ok(collector) => {
            METRICS.get_or_init(|| collector);
        }
        Err(error) => tracing::warn!(%error, "metrics are already initialized"),
    }
    if let Err(error) = logs {
        tracing::warn!(%error, "logs are already initialized");
    }
}

/// Reports a value that this invocation measured, as the metric `name`.
///
/// The value is written once. `metrics::gauge!` must not be used: the collector writes a gauge's last value again
/// after each later invocation, even one that failed before it measured anything. An alarm would then take an old
/// value for a new one, and could never detect that the value is missing.
pub fn report(name: &'static str, value: f64) {
    metrics::histogram!(name).record(value);
}

/// Returns the log level with this name. Returns `INFO` for an unknown name, and `DEBUG` for `TRACE`.
fn parse_level(name: &str) -> LevelFilter {
    match name {
        // An empty name would otherwise parse as ERROR.
        "" => LevelFilter::INFO,
        "FATAL" => LevelFilter::ERROR,
        // With TRACE, the runtime's crate logs whole events: credentials, and the registrations' payment methods.
        name => name.parse().unwrap_or(LevelFilter::INFO).min(LevelFilter::DEBUG),
    }
}

/// Writes the metrics since the last call. One invocation writes one document for each distinct set of labels.
pub(crate) fn flush(request_id: &str) {
    if let Some(collector) = METRICS.get()
        && let Err(error) = write(collector, request_id, std::io::stdout())
    {
        tracing::error!(%error, "metrics were not written");
    }
}

fn write(collector: &Collector, request_id: &str, to: impl io::Write) -> io::Result<()> {
    collector.set_property("requestId", request_id);
    collector.flush(to)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Flushes the metrics. Returns the value of this metric in the written document, or null if it has none.
    fn written(name: &str) -> Value {
        let mut text = Vec::new();
        let collector = METRICS.wait();
        write(collector, "a request", &mut text).expect("writing to a vector");
        let lines = String::from_utf8(text).expect("text");
        let documents = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        documents
            .map(|document: Value| document[name].clone())
            .find(|it| !it.is_null())
            .unwrap_or_default()
    }

    #[test]
    fn a_reported_value_is_written_exactly_once() {
        start();
        report("Waiting", 0.0);
        assert_ne!(written("Waiting"), Value::Null);
        assert_eq!(written("Waiting"), Value::Null, "the next invocation measured nothing");
        report("Waiting", 3.0);
        assert_eq!(written("Waiting"), serde_json::json!([3.0]));
    }

    #[test]
    fn lambdas_level_names_are_understood() {
        for (name, level) in [
            ("TRACE", LevelFilter::DEBUG),
            ("DEBUG", LevelFilter::DEBUG),
            ("INFO", LevelFilter::INFO),
            ("WARN", LevelFilter::WARN),
            ("ERROR", LevelFilter::ERROR),
            ("FATAL", LevelFilter::ERROR),
            ("", LevelFilter::INFO),
            ("unknown", LevelFilter::INFO),
        ] {
            assert_eq!(parse_level(name), level, "{name}");
        }
    }
}
