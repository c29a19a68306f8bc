//! Lambda function `recover-onboarding`.

use aws_sdk_sfn::Client;
use lambda::{Aws, Error, env, serve_step};
use machines::StateMachine;
use onboarding::recover_onboarding::RecoverOnboarding;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["states"]).await?;
    let client = Client::new(aws.config());
    serve_step(RecoverOnboarding {
        onboarding: StateMachine { client: client.clone(), arn: env("SITE_ONBOARDING_ARN")? },
        teardown: StateMachine { client, arn: env("SITE_TEARDOWN_ARN")? },
    })
    .await
}
