//! Start-up of a billing Lambda: the DynamoDB client and one of the candidate Stripe clients are made,
//! then the process ends. With an argument it also calls, so that nothing of the client is
//! optimised away.
use aws_sdk_dynamodb::{Client, Config, config::Region};
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The SDK has no trust store here, so that reading one does not drown what is measured.
    let tls = TlsContext::builder().with_trust_store(TrustStore::empty()).build().unwrap();
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(tls)
        .build_https();
    let config = Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .http_client(http);
    let dynamodb = Client::from_conf(config.build());
    let call = std::env::args().nth(1);
    runtime.block_on(async {
        stripe(call.as_deref()).await;
        if call.is_some() {
            println!("{:?}", dynamodb.get_item().send().await.is_ok());
        }
    });
}

#[cfg(not(any(feature = "async-stripe", feature = "reqwest", feature = "hyper")))]
async fn stripe(_name: Option<&str>) {}

#[cfg(feature = "async-stripe")]
async fn stripe(name: Option<&str>) {
    let client = std::hint::black_box(stripe::Client::new("sk_test_probe"));
    if let Some(name) = name {
        let answer = stripe_core::customer::CreateCustomer::new().name(name).send(&client).await;
        println!("{:?}", answer.map(|customer| customer.id));
    }
}

#[cfg(feature = "reqwest")]
async fn stripe(name: Option<&str>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let client = std::hint::black_box(
        reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap(),
    );
    if let Some(name) = name {
        let request = client
            .post("https://api.stripe.com/v1/customers")
            .bearer_auth("sk_test_probe")
            .form(&[("name", name)]);
        println!("{:?}", request.send().await.unwrap().text().await);
    }
}

#[cfg(feature = "hyper")]
async fn stripe(name: Option<&str>) {
    use http_body_util::{BodyExt, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::aws_lc_rs::default_provider())
        .unwrap()
        .https_or_http()
        .enable_http1()
        .build();
    let client = std::hint::black_box(
        Client::builder(TokioExecutor::new()).build::<_, Full<hyper::body::Bytes>>(connector),
    );
    if let Some(name) = name {
        let body =
            form_urlencoded::Serializer::new(String::new()).append_pair("name", name).finish();
        let request = hyper::Request::post("https://api.stripe.com/v1/customers")
            .header("authorization", "Bearer sk_test_probe")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::from(body));
        let answer = client.request(request.unwrap()).await.unwrap();
        println!("{:?}", answer.into_body().collect().await.unwrap().to_bytes());
    }
}
