//! The metrics that code under test writes.

use std::collections::BTreeMap;

use metrics::Key;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

/// Returns the result of `work` and the metrics that it wrote on this thread.
///
/// The keys are name and dimensions, e.g. `OnboardingsFailed step=ReserveKits`. The values are a counter's sum, a
/// gauge's last value, or a histogram's sum.
pub fn measured<T>(
    work: impl Future<Output = T>,
) -> impl Future<Output = (T, BTreeMap<String, f64>)> {
    let work = Box::pin(work);
    async move {
        let recorder = DebuggingRecorder::new();
        let outcome = {
            let _recording = metrics::set_default_local_recorder(&recorder);
            work.await
        };
        let measured = recorder.snapshotter().snapshot().into_vec();
        (
            outcome,
            measured.into_iter().map(|(key, _, _, value)| to_entry(key.key(), value)).collect(),
        )
    }
}

/// Returns the key and the value of a metric.
fn to_entry(key: &Key, value: DebugValue) -> (String, f64) {
    let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
    let value = match value {
        #[expect(clippy::cast_precision_loss, reason = "tests count to small numbers")]
        DebugValue::Counter(count) => count as f64,
        DebugValue::Gauge(value) => value.into_inner(),
        DebugValue::Histogram(values) => values.iter().map(|value| value.into_inner()).sum(),
    };
    (key.name().to_owned() + &labels.collect::<String>(), value)
}
