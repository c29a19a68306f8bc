//! Lambda function `get-key`.

use audit::Trail;
use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use operators::get_key::GetKey;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step =
        GetKey { keys: aws.table("KEYS_TABLE")?, trail: Trail::new(aws.table("AUDIT_TABLE")?) };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
