//! HTTP/1.1 server on the loopback interface, with or without TLS.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use anyhow::Result;
use http_body_util::{BodyExt, Collected, Full};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256,
};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

/// A request with its complete body.
pub type HttpRequest = Request<Bytes>;
/// A response.
pub type HttpResponse = Response<Full<Bytes>>;

/// Handles requests.
pub trait Handler: Send + Sync + 'static {
    /// Returns the response to a request.
    fn respond(&self, request: HttpRequest) -> impl Future<Output = HttpResponse> + Send;
}

/// A running server. Dropping it stops listening.
#[derive(Debug)]
pub struct Server {
    /// The address of the server.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts a server on a free port.
    pub async fn start(tls: Option<TlsAcceptor>, handler: Arc<impl Handler>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (tls, handler) = (tls.clone(), Arc::clone(&handler));
                tokio::spawn(async move {
                    // This fails if the process has ended and closed the connection.
                    connection.set_nodelay(true).ok();
                    match tls {
                        None => serve(connection, handler).await,
                        Some(tls) => {
                            if let Ok(connection) = tls.accept(connection).await {
                                serve(connection, handler).await;
                            }
                        }
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Arc<impl Handler>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = Arc::clone(&handler);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
            Ok::<_, Infallible>(handler.respond(Request::from_parts(head, body)).await)
        }
    });
    let server = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(connection), service)
        .await;
    drop(server);
}

/// Returns a response with this status and body.
pub fn response(status: u16, body: impl Into<Bytes>) -> HttpResponse {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
    response
}

/// Certificates like those of the AWS endpoints: RSA with 2048 bits, and an intermediate certificate between the
/// server's certificate and the root.
pub struct Certificates {
    /// The acceptor with the certificate chain of the server.
    pub acceptor: TlsAcceptor,
    /// The root certificate, as PEM.
    pub root: String,
}

impl Certificates {
    /// Generates new certificates.
    pub fn new() -> Result<Self> {
        let root = CertifiedIssuer::self_signed(authority("Bench Root")?, key()?)?;
        let intermediate = CertifiedIssuer::signed_by(authority("Bench RSA 2048")?, key()?, &root)?;
        let leaf_key = key()?;
        let leaf = CertificateParams::new(["localhost".to_owned()])?
            .signed_by(&leaf_key, &intermediate)?;
        let chain = vec![leaf.der().clone(), intermediate.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), root: root.pem() })
    }
}

fn key() -> Result<KeyPair> {
    Ok(KeyPair::generate_for(&PKCS_RSA_SHA256)?)
}

fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}
