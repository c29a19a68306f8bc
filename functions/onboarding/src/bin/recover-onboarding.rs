//! Lambda function `recover-onboarding`.

use aws_sdk_sfn::Client;
use lambda::{Aws, Error, env, serve_step};
use machines::Machine;
use onboarding::recover_onboarding::RecoverOnboarding;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["states"]).await?;
    let client = Client::new(aws.config());
    serve_step(RecoverOnboarding {
        onboarding: Machine { client: client.clone(), arn: env("SITE_ONBOARDING_ARN")? },
        teardown: Machine { client, arn: env("SITE_TEARDOWN_ARN")? },
    })
    .await
}
