//! Lambda function `initialize-subscription`.

use std::time::Duration;

use billing::{
    circuit::{Circuit, Rules},
    commands::TaskTokenConsumer,
    initialize_subscription::InitializeSubscription,
    provider::Provider,
};
use contracts::Timestamp;
use lambda::{Aws, Error, env, serve_commands};
use machines::StateMachine;
use store::Idempotency;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "secretsmanager", "states"]).await?;
    let billing = aws.table("BILLING_TABLE")?;
    let consumer = TaskTokenConsumer {
        circuit: Circuit { table: billing.clone(), rules: Rules::from_env()? },
        step: InitializeSubscription {
            // Longer than the function's timeout of 20 s.
            idempotency: Idempotency::new(billing.clone(), Duration::from_secs(30)),
            billing,
            outbox: aws.outbox()?,
            provider: Provider::from_env(&aws)?,
        },
        machine: StateMachine {
            client: aws_sdk_sfn::Client::new(aws.config()),
            arn: env("SITE_ONBOARDING_ARN")?,
        },
        queues: aws_sdk_sqs::Client::new(aws.config()),
        queue_url: env("COMMAND_QUEUE_URL")?,
        // The `TimeoutSeconds` of the state that sends the command.
        state_timeout: Duration::from_hours(1),
    };
    serve_commands(
        async |message, deadline| consumer.handle(message, deadline, Timestamp::now()).await,
        async |message, deadline| consumer.replay(&message, deadline, Timestamp::now()).await,
    )
    .await
}
