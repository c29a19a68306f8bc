//! Lambda function `last-state`.

use aws_config::BehaviorVersion;
use aws_lambda_events::kinesis::KinesisEvent;
use aws_sdk_dynamodb::Client;
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use last_state::{Table, handle};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https();
    let config = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
    let states = &Table { client: Client::new(&config), name: std::env::var("STATES_TABLE")? };
    lambda_runtime::run(service_fn(|event: LambdaEvent<KinesisEvent>| async {
        Ok::<_, Error>(handle(event.payload, states).await)
    }))
    .await
}
