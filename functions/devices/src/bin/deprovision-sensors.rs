//! Lambda function `deprovision-sensors`.

use devices::deprovision_sensors::DeprovisionSensors;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(DeprovisionSensors { devices: aws.table("DEVICES_TABLE")?, outbox: aws.outbox()? })
        .await
}
