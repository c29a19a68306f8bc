//! Lambda function `check-sagas`.

use std::time::Duration;

use aws_sdk_sfn::Client;
use lambda::{Aws, ConfigError, Error, env, serve_step};
use machines::StateMachine;
use onboarding::check_sagas::CheckSagas;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["states"]).await?;
    let client = Client::new(aws.config());
    serve_step(CheckSagas {
        machines: [
            StateMachine { client: client.clone(), arn: env("SITE_ONBOARDING_ARN")? },
            StateMachine { client, arn: env("SITE_TEARDOWN_ARN")? },
        ],
        budget: budget()?,
        // The function's timeout is 30 s.
        timeout: Duration::from_secs(25),
    })
    .await
}

fn budget() -> Result<Duration, ConfigError> {
    let name = "SAGA_BUDGET_SECONDS";
    let text = env(name)?;
    let seconds = text.parse().map_err(|_| ConfigError {
        name,
        problem: format!("is {text:?}, not a number of seconds"),
    })?;
    Ok(Duration::from_secs(seconds))
}
