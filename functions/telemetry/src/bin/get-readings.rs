//! Lambda function `get-readings`.

use lambda::{Aws, Error, serve_http};
use telemetry::{get_readings::GetReadings, paging::Paging};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "secretsmanager"]).await?;
    let step =
        GetReadings { readings: aws.table("READINGS_TABLE")?, paging: Paging::from_env(&aws)? };
    serve_http(aws.limits()?, async |request, caller| step.handle(&caller, &request).await).await
}
