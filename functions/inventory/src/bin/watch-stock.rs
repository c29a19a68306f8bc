//! Lambda function `watch-stock`.

use inventory::watch_stock::{Limits, WatchStock};
use lambda::{Aws, ConfigError, Error, env, serve_stream};
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = WatchStock {
        inventory: aws.table("INVENTORY_TABLE")?,
        outbox: aws.outbox()?,
        limits: Limits { low: quantity("STOCK_LOW_LIMIT")?, deadband: quantity("STOCK_DEADBAND")? },
        quarantine: Quarantine::from_env(&aws, "watch-stock")?,
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}

fn quantity(name: &'static str) -> Result<u32, ConfigError> {
    let text = env(name)?;
    text.parse().map_err(|_| ConfigError { name, problem: format!("is {text:?}; give a number") })
}
