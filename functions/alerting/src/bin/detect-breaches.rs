//! Lambda function `detect-breaches`.

use std::time::Duration;

use alerting::{detect_breaches::DetectBreaches, watermarks::WatermarkCache};
use lambda::{Aws, Error, env_number, serve_stream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = DetectBreaches {
        alerting: aws.table("ALERTING_TABLE")?,
        outbox: aws.outbox()?,
        watermarks: WatermarkCache::default(),
        max_age: Duration::from_mins(env_number::<u32>("ALERT_MAX_AGE_MINUTES")?.into()),
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}
