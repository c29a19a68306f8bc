//! Lambda function `store-readings`.

use lambda::{Aws, Error, serve_stream};
use telemetry::store_readings::StoreReadings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let step = StoreReadings::from_env(&Aws::start(&["dynamodb"]).await?)?;
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}
