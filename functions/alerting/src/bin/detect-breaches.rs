//! Lambda function `detect-breaches`.

use std::time::Duration;

use alerting::{detect_breaches::DetectBreaches, watermarks::WatermarkCache};
use lambda::{Aws, ConfigError, Error, env, serve_stream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = DetectBreaches {
        alerting: aws.table("ALERTING_TABLE")?,
        outbox: aws.outbox()?,
        watermarks: WatermarkCache::default(),
        max_age: max_age()?,
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}

fn max_age() -> Result<Duration, ConfigError> {
    let name = "ALERT_MAX_AGE_MINUTES";
    let text = env(name)?;
    let minutes: u32 = text
        .parse()
        .map_err(|_| ConfigError { name, problem: format!("is {text:?}; give a number") })?;
    Ok(Duration::from_mins(minutes.into()))
}
