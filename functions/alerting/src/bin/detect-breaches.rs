//! Lambda function `detect-breaches`.

use alerting::{detect_breaches::DetectBreaches, watermarks::WatermarkCache};
use lambda::{Aws, Error, serve_stream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = DetectBreaches {
        alerting: aws.table("ALERTING_TABLE")?,
        outbox: aws.outbox()?,
        watermarks: WatermarkCache::default(),
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}
