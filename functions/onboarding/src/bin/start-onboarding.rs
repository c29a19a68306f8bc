//! Lambda function `start-onboarding`.

use aws_sdk_sfn::Client;
use lambda::{Aws, Error, env, serve_step};
use machines::StateMachine;
use onboarding::start_onboarding::StartOnboarding;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["states"]).await?;
    serve_step(StartOnboarding {
        onboarding: StateMachine {
            client: Client::new(aws.config()),
            arn: env("SITE_ONBOARDING_ARN")?,
        },
    })
    .await
}
