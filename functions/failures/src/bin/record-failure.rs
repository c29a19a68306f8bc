//! Lambda function `record-failure`.

use contracts::Timestamp;
use failures::{files::Files, ledger::Ledger, record_failure::RecordFailure};
use lambda::{Aws, Error, env, serve_queue};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = RecordFailure {
        ledger: Ledger { failures: aws.table("FAILURES_TABLE")? },
        files: Files::of(&aws),
        payloads: env("PAYLOADS_BUCKET")?,
        sources: env("SOURCES")?.parse()?,
    };
    serve_queue(async |message, _| {
        step.handle(&message, Timestamp::now()).await.map_err(|error| error.to_string())
    })
    .await
}
