//! Lambda function `check-consumers`.

use std::time::Duration;

use failures::check_consumers::CheckConsumers;
use lambda::{Aws, Error, env, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["lambda"]).await?;
    serve_step(CheckConsumers {
        lambda: aws_sdk_lambda::Client::new(aws.config()),
        sqs: aws_sdk_sqs::Client::new(aws.config()),
        environment: env("ENVIRONMENT")?,
        queues_url: env("QUEUES_URL")?,
        // Lambda's API allows an account 15 calls a second, and deployments need them, too.
        pause: Duration::from_millis(100),
        // The function's timeout is 30 s.
        timeout: Duration::from_secs(25),
    })
    .await
}
