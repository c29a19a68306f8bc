//! Lambda function `project-sensors`.

use lambda::{Aws, Error, serve_step};
use telemetry::project_sensors::ProjectSensors;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ProjectSensors { readings: aws.table("READINGS_TABLE")?, outbox: aws.outbox()? })
        .await
}
