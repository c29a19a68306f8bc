//! Lambda function `initialize-subscription`.

use std::time::Duration;

use billing::{
    commands::Commands, initialize_subscription::InitializeSubscription, provider::Provider,
};
use lambda::{Aws, Error, env, serve_queue};
use store::Idempotency;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start()?;
    let billing = aws.table("BILLING_TABLE")?;
    let commands = Commands {
        step: InitializeSubscription {
            // Longer than the function's time-out of 20 s.
            idempotency: Idempotency::new(billing.clone(), Duration::from_secs(30)),
            billing,
            outbox: aws.outbox()?,
            provider: Provider::of(&aws)?,
        },
        machines: aws_sdk_sfn::Client::new(aws.config()),
        queues: aws_sdk_sqs::Client::new(aws.config()),
        queue_url: env("COMMAND_QUEUE_URL")?,
        // 8.5 minutes of growing delays, then 5 minutes each: outlasts the state's hour.
        most_attempts: 20,
    };
    serve_queue(async |message, deadline| commands.handle(message, deadline).await).await
}
