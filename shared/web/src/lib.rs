//! HTTPS client for systems outside AWS. It uses the HTTP and TLS libraries that the AWS SDK already links.
//!
//! Mozilla's root certificates are compiled into this client, because the root certificates of the AWS clients are only
//! Amazon's. The system's root certificates are not used: reading them would take more CPU instructions than the rest
//! of the start-up.
//!
//! The client does not follow redirects. It sends a request again only if a connection from the pool was closed before
//! the request was written.

use std::{error::Error, net::IpAddr, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
pub use hyper::{Request, Uri, body::Bytes, http};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use lambda::Call;

/// The timeout for opening the TCP connection, without name resolution and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an idle connection stays in the pool. The other system may close a connection while the Lambda environment
/// is frozen. With this short time, the environment rarely uses such a connection after the freeze. The time is long
/// enough for the calls of one invocation to share a connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// The limits of a call.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum time from the name resolution to the last byte of the response.
    pub time: Duration,
    /// The maximum size of the response's body, in bytes. It protects the memory.
    pub body: usize,
}

/// There was no complete response within the limits. The call may have been executed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoResponse(String);

/// The client can't be used with this URL, or can't be created.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// An HTTPS client. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Web(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Web {
    /// Creates a client.
    pub fn new() -> Result<Self, ConfigError> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|error| ConfigError(error.to_string()))?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client =
            Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector);
        Ok(Self(client))
    }

    /// Sends a request to a URL that [`secure_url`] accepts, and reads the whole response.
    pub async fn send(
        &self,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<http::Response<Bytes>, NoResponse> {
        let exchange = async {
            let request = request.map(Full::new);
            let call = Call::start(&request);
            let (head, body) = match self.0.request(request).await {
                Ok(response) => response.into_parts(),
                Err(error) => {
                    call.failed(&error);
                    return Err(with_causes(&error));
                }
            };
            call.answered(head.status.as_u16());
            let body = Limited::new(body, limits.body).collect().await;
            let body = body.map_err(|error| with_causes(error.as_ref()))?;
            Ok(http::Response::from_parts(head, body.to_bytes()))
        };
        let response = tokio::time::timeout(limits.time, exchange).await;
        response
            .unwrap_or_else(|_| Err(NoResponse(format!("no response within {:?}", limits.time))))
    }
}

/// Parses an HTTPS URL. Plain HTTP is accepted only for a loopback host, where a local fake of the other system
/// listens.
pub fn secure_url(url: &str) -> Result<Uri, ConfigError> {
    let uri: Uri = url.parse().map_err(|error| ConfigError(format!("URL {url:?}: {error}")))?;
    let allowed = match uri.scheme_str() {
        Some("https") => uri.host().is_some(),
        Some("http") => uri.host().is_some_and(is_loopback),
        _ => false,
    };
    if allowed {
        Ok(uri)
    } else {
        Err(ConfigError(format!("URL {url:?} must be https, or http to a loopback host")))
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// Creates the error with all its causes. The outermost one says only "client error".
fn with_causes(error: &(dyn Error + 'static)) -> NoResponse {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    NoResponse(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use testkit::http::{NO_RESPONSE, Stub};

    use super::*;

    const LIMITS: Limits = Limits { time: Duration::from_millis(500), body: 100 };

    async fn get(url: &str) -> Result<http::Response<Bytes>, NoResponse> {
        let request = Request::get(url).body(Bytes::new()).expect("a request");
        Web::new().expect("a client").send(request, LIMITS).await
    }

    #[tokio::test]
    async fn a_response_is_returned_with_its_status() {
        let stub = Stub::start(|_| (404, json!("no"))).await;
        let response = get(&stub.url()).await.expect("a response");
        assert_eq!((response.status().as_u16(), response.body().as_ref()), (404, &b"\"no\""[..]));
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let stub = Stub::with_headers(|_| (302, vec![("location", "/elsewhere")], json!({}))).await;
        assert_eq!(get(&stub.url()).await.expect("a response").status(), 302);
        assert_eq!(stub.take_calls().len(), 1);
    }

    #[tokio::test]
    async fn a_large_or_late_response_is_an_error() {
        let stub = Stub::start(|call| match call.path.as_str() {
            "/late" => (NO_RESPONSE, json!({})),
            _ => (200, json!("x".repeat(99))),
        })
        .await;
        let large = get(&format!("{}/large", stub.url())).await.expect_err("too large");
        assert!(large.to_string().contains("length limit"), "{large}");
        let late = get(&format!("{}/late", stub.url())).await.expect_err("too late");
        assert!(late.to_string().contains("no response within"), "{late}");
    }

    #[tokio::test]
    async fn an_error_names_its_cause() {
        let refused = get("http://127.0.0.1:1/").await.expect_err("nobody listens");
        assert!(refused.to_string().contains("refused"), "{refused}");
    }

    #[test]
    fn only_https_and_loopback_urls_are_accepted() {
        for url in
            ["https://a.example", "http://localhost:1", "http://127.0.0.1:8080/x", "http://[::1]"]
        {
            assert!(secure_url(url).is_ok(), "{url}");
        }
        for url in [
            "",
            "/path",
            "a.example",
            "http://a.example",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "ftp://localhost",
            "http://10.0.0.1",
        ] {
            assert!(secure_url(url).is_err(), "{url}");
        }
    }
}
