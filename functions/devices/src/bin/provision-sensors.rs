//! Lambda function `provision-sensors`.

use devices::provision_sensors::ProvisionSensors;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ProvisionSensors { devices: aws.table("DEVICES_TABLE")?, outbox: aws.outbox()? })
        .await
}
