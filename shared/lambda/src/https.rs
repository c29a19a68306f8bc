//! HTTPS client for AWS: hyper over rustls, HTTP/1.1 only. The SDK's own connector adds HTTP/2, which no function
//! needs, and it can't open a connection in advance.

use std::time::Duration;

use aws_smithy_runtime_api::client::{
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
    },
    orchestrator::HttpRequest,
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;
use hyper::Request;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector as Tcp},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::Call;

/// Timeout of the TCP connection alone. The SDK has a timeout for the whole attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// An HTTPS client. All clients of a function share its connection pool.
#[derive(Clone, Debug)]
pub(crate) struct Https(Client<hyper_rustls::HttpsConnector<Tcp>, SdkBody>);

impl Https {
    /// Trusts only the roots in `pem`. Fails if one can't be parsed or there are none.
    pub(crate) fn trusting_pem(pem: &[u8]) -> Result<Self, rustls::Error> {
        let roots = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let roots = roots.map_err(|error| rustls::Error::General(error.to_string()))?;
        if roots.is_empty() {
            return Err(rustls::Error::General("it contains no PEM certificate".to_owned()));
        }
        Self::trusting(roots)
    }

    /// Trusts only these roots. Fails if one can't be parsed.
    pub(crate) fn trusting<'a>(
        trusted: impl IntoIterator<Item = CertificateDer<'a>>,
    ) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        for root in trusted {
            roots.add(root)?;
        }
        let tls = ClientConfig::builder_with_provider(
            rustls::crypto::aws_lc_rs::default_provider().into(),
        )
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
        let mut tcp = Tcp::new();
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self(Client::builder(TokioExecutor::new()).build(https)))
    }

    /// Opens a connection and leaves it in the pool for the next request to that host.
    pub(crate) async fn open(&self, endpoint: &str) -> Result<(), Box<dyn std::error::Error>> {
        let request = Request::get(format!("{endpoint}ping")).body(SdkBody::empty())?;
        // The status does not matter. Reading the body to its end returns the connection to the pool.
        self.0.request(request).await?.into_body().collect().await?;
        Ok(())
    }
}

impl HttpClient for Https {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Https {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let client = self.0.clone();
        HttpConnectorFuture::new(async move {
            let request =
                request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let call = Call::start(&request);
            let response = match client.request(request).await {
                Ok(response) => response,
                Err(error) => {
                    call.failed(&error);
                    // The SDK retries I/O errors.
                    return Err(ConnectorError::io(error.into()));
                }
            };
            call.answered(response.status().as_u16());
            response
                .map(SdkBody::from_body_1_x)
                .try_into()
                .map_err(|error| ConnectorError::other(Box::new(error), None))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Starts an HTTPS server that responds to every request with `{}`. Returns its address, its certificate as PEM, and
    /// the number of connections it accepted.
    pub(crate) async fn server() -> (String, String, Arc<AtomicUsize>) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = ServerConfig::builder_with_provider(provider.into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a server");
        let tls = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}/", listener.local_addr().expect("a port").port());
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                counted.fetch_add(1, SeqCst);
                let tls = tls.clone();
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(tcp).await else { return };
                    let mut lines = BufReader::new(stream);
                    let mut line = String::new();
                    while lines.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                        if line == "\r\n" {
                            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                            lines.write_all(response).await.expect("the client reads");
                        }
                        line.clear();
                    }
                });
            }
        });
        (url, cert.pem(), connections)
    }

    fn get(url: &str) -> HttpRequest {
        let mut request = HttpRequest::new(SdkBody::empty());
        request.set_uri(url).expect("a URL");
        request
    }

    #[tokio::test]
    async fn a_call_reuses_the_connection_that_was_opened_in_advance() {
        let (url, pem, connections) = server().await;
        let https = Https::trusting_pem(pem.as_bytes()).expect("roots");
        https.open(&url).await.expect("a connection");
        let response = HttpConnector::call(&https, get(&url)).await.expect("a response");
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.into_body().collect().await.expect("all of it").to_bytes(), "{}");
        assert_eq!(connections.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn a_server_with_an_untrusted_root_is_refused_with_a_retryable_error() {
        let ((url, ..), (_, other_pem, _)) = (server().await, server().await);
        let https = Https::trusting_pem(other_pem.as_bytes()).expect("roots");
        https.open(&url).await.expect_err("an untrusted server");
        let error = HttpConnector::call(&https, get(&url)).await.expect_err("an untrusted server");
        assert!(error.is_io(), "{error:?}");
    }
}
