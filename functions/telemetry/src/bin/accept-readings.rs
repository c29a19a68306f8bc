//! Lambda function `accept-readings`.

use aws_sdk_kinesis::{
    Client,
    config::{Builder, retry::RetryConfig},
};
use contracts::Timestamp;
use lambda::{Aws, Error, env, env_number, http::serve_http_with_deadline};
use telemetry::{accept_readings::AcceptReadings, refusals::Refusals, register::Register};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "kinesis"]).await?;
    let config = Builder::from(aws.config()).retry_config(RetryConfig::disabled()).build();
    let step = AcceptReadings {
        client: Client::from_conf(config),
        stream_name: env("READINGS_STREAM")?,
        register: Register::from_env(&aws)?,
        max_age_days: env_number("READINGS_MAX_AGE_DAYS")?,
        refusals: Refusals::new(aws.table("REFUSALS_TABLE")?),
    };
    serve_http_with_deadline(aws.limits()?, async |request, caller, deadline| {
        step.handle(&caller, &request, Timestamp::now(), deadline).await
    })
    .await
}
