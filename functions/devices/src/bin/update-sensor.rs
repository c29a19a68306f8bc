//! Lambda function `update-sensor`.

use audit::Trail;
use contracts::Timestamp;
use devices::update_sensor::UpdateSensor;
use lambda::{Aws, Error, serve_http};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = UpdateSensor {
        devices: aws.table("DEVICES_TABLE")?,
        readings: aws.table("READINGS_TABLE")?,
        outbox: aws.outbox()?,
        trail: Trail::new(aws.table("AUDIT_TABLE")?),
    };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
