//! Lambda function `watch-stock`.

use inventory::watch_stock::{Limits, WatchStock};
use lambda::{Aws, Error, env_number, serve_stream};
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = WatchStock {
        inventory: aws.table("INVENTORY_TABLE")?,
        outbox: aws.outbox()?,
        limits: Limits {
            low: env_number("STOCK_LOW_LIMIT")?,
            deadband: env_number("STOCK_DEADBAND")?,
        },
        quarantine: Quarantine::from_env(&aws, "watch-stock")?,
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}
