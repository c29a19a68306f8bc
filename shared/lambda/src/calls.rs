//! Logging of slow and failed calls to other systems. The log of a slow invocation then shows where its time went.

use std::{
    fmt::{self, Display},
    time::{Duration, Instant},
};

use hyper::{Method, Request, Uri, http::HeaderValue};

/// A call that takes this long or longer is slow. Most AWS calls take a few milliseconds.
const SLOW: Duration = Duration::from_millis(300);

/// A running call. It logs one line when it ends: `slow call` at INFO level, `failed call` at WARN level, or `call`
/// at DEBUG level.
///
/// A call that is dropped before its end, by a timeout, is logged as failed.
#[derive(Debug)]
pub struct Call {
    name: Name,
    start: Instant,
    ended: bool,
}

impl Call {
    /// Starts the measurement for a request that is about to be sent.
    pub fn start<B>(request: &Request<B>) -> Self {
        Self { name: Name::new(request), start: Instant::now(), ended: false }
    }

    /// Ends the call: the other system responded with this HTTP status.
    pub fn answered(mut self, status: u16) {
        let took = self.end();
        let (call, millis) = (&self.name, milliseconds(took));
        if took >= SLOW {
            tracing::info!(%call, millis, status, "slow call");
        } else {
            tracing::debug!(%call, millis, status, "call");
        }
    }

    /// Ends the call without a response.
    pub fn failed(mut self, error: &dyn Display) {
        let millis = milliseconds(self.end());
        tracing::warn!(call = %self.name, millis, %error, "failed call");
    }

    fn end(&mut self) -> Duration {
        self.ended = true;
        self.start.elapsed()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            let millis = milliseconds(self.end());
            tracing::warn!(call = %self.name, millis, error = "cancelled by a timeout", "failed call");
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The name of a call in the logs: the host and AWS's operation, or the host, method and path. The query is left out,
/// because it may contain personal data.
#[derive(Debug)]
struct Name {
    uri: Uri,
    method: Method,
    operation: Option<HeaderValue>,
}

impl Name {
    fn new<B>(request: &Request<B>) -> Self {
        Self {
            uri: request.uri().clone(),
            method: request.method().clone(),
            operation: request.headers().get("x-amz-target").cloned(),
        }
    }
}

impl Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.uri.host().unwrap_or_default();
        match self.operation.as_ref().and_then(|it| it.to_str().ok()) {
            Some(operation) => write!(to, "{host} {operation}"),
            None => write!(to, "{host} {} {}", self.method, self.uri.path()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
        thread::sleep,
    };

    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("the lines").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns what the work logs at this level: level, message and call.
    fn logged(level: tracing::Level, work: impl FnOnce()) -> Vec<Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(lines.0.lock().expect("the lines").clone()).expect("text");
        let line = |line| serde_json::from_str::<Value>(line).expect("JSON");
        text.lines().map(line).map(|it| json!([it["level"], it["message"], it["call"]])).collect()
    }

    fn get(uri: &str) -> Request<()> {
        Request::get(uri).body(()).expect("a request")
    }

    #[test]
    fn a_slow_or_failed_call_is_logged_and_others_only_at_debug_level() {
        let work = || {
            Call::start(&get("https://quick/")).answered(200);
            let slow = Call::start(&get("https://slow/"));
            sleep(SLOW);
            slow.answered(503);
            Call::start(&get("https://broken/")).failed(&"connection reset");
            drop(Call::start(&get("https://hanging/")));
        };
        let important = [
            json!(["INFO", "slow call", "slow GET /"]),
            json!(["WARN", "failed call", "broken GET /"]),
            json!(["WARN", "failed call", "hanging GET /"]),
        ];
        assert_eq!(logged(tracing::Level::INFO, work), important);
        let all = [&[json!(["DEBUG", "call", "quick GET /"])], &important[..]].concat();
        assert_eq!(logged(tracing::Level::DEBUG, work), all);
    }

    #[test]
    fn the_name_of_a_call_has_its_operation_or_path_but_no_query() {
        let mut request = get("https://dynamodb.eu-central-1.amazonaws.com/");
        let operation = HeaderValue::from_static("DynamoDB_20120810.PutItem");
        request.headers_mut().insert("x-amz-target", operation);
        assert_eq!(
            Name::new(&request).to_string(),
            "dynamodb.eu-central-1.amazonaws.com DynamoDB_20120810.PutItem"
        );
        let search = get("https://api.stripe.com/v1/customers/search?query=a@example.org");
        assert_eq!(Name::new(&search).to_string(), "api.stripe.com GET /v1/customers/search");
    }
}
