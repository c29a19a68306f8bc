//! Lambda function `store-held-readings`.

use lambda::{Aws, Error, serve_queue};
use telemetry::store_readings::StoreReadings;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let step = StoreReadings::from_env(&Aws::start(&["dynamodb", "sqs"]).await?)?;
    serve_queue(async |message, _| step.handle_held(&message).await).await
}
