//! Logs as JSON lines, metrics as CloudWatch's embedded metric format, both on standard output.

use std::sync::OnceLock;

use metrics_cloudwatch_embedded::{Builder, Collector};
use tracing_subscriber::filter::LevelFilter;

static METRICS: OnceLock<&'static Collector> = OnceLock::new();

/// Starts both. A second call changes nothing.
pub(crate) fn start() {
    // Lambda sets the variable from the function's LoggingConfig. A level for everything: filters by
    // module would need regular expressions, a third of a megabyte of them.
    let level = std::env::var("AWS_LAMBDA_LOG_LEVEL").unwrap_or_default();
    let logs = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_target(false)
        .with_max_level(level_of(&level))
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
        Err(error) => tracing::warn!(%error, "metrics were started before"),
    }
    if let Err(error) = logs {
        tracing::warn!(%error, "logs were started before");
    }
}

/// The level by Lambda's name for it; `INFO` where it is none.
fn level_of(name: &str) -> LevelFilter {
    match name {
        // Which would read as ERROR.
        "" => LevelFilter::INFO,
        "FATAL" => LevelFilter::ERROR,
        name => name.parse().unwrap_or(LevelFilter::INFO),
    }
}

/// Writes what was counted since the last call; one invocation, one document.
pub(crate) fn flush(request_id: &str) {
    if let Some(collector) = METRICS.get() {
        collector.set_property("requestId", request_id);
        if let Err(error) = collector.flush(std::io::stdout()) {
            tracing::error!(%error, "metrics were not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_what_lambda_calls_it() {
        for (name, level) in [
            ("TRACE", LevelFilter::TRACE),
            ("DEBUG", LevelFilter::DEBUG),
            ("INFO", LevelFilter::INFO),
            ("WARN", LevelFilter::WARN),
            ("ERROR", LevelFilter::ERROR),
            ("FATAL", LevelFilter::ERROR),
            ("", LevelFilter::INFO),
            ("chatty", LevelFilter::INFO),
        ] {
            assert_eq!(level_of(name), level, "{name}");
        }
    }
}
