//! Lambda function `record-failure`.

use contracts::Timestamp;
use failures::record_failure::RecordFailure;
use lambda::{Aws, Error, env, serve_queue};
use ledger::{Ledger, files::Files};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = RecordFailure {
        environment: env("ENVIRONMENT")?,
        ledger: Ledger { failures: aws.table("FAILURES_TABLE")? },
        files: Files::new(aws.config()),
        bucket: env("FAILURES_BUCKET")?,
    };
    serve_queue(async |message, _| {
        step.handle(&message, Timestamp::now()).await.map_err(|error| error.to_string())
    })
    .await
}
