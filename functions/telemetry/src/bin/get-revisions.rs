//! Lambda function `get-revisions`.

use lambda::{Aws, Error, serve_http};
use telemetry::{get_revisions::GetRevisions, paging::Paging};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "secretsmanager"]).await?;
    let step =
        GetRevisions { readings: aws.table("READINGS_TABLE")?, paging: Paging::from_env(&aws)? };
    serve_http(aws.limits()?, async |request, caller| step.handle(&caller, &request).await).await
}
