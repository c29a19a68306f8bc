//! Lambda function `detect-breaches`.

use alerting::{detect_breaches::DetectBreaches, memory::Memory};
use lambda::{Aws, Error, serve_stream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = DetectBreaches {
        alerting: aws.table("ALERTING_TABLE")?,
        outbox: aws.outbox()?,
        memory: Memory::default(),
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}
