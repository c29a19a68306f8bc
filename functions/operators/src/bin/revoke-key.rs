//! Lambda function `revoke-key`.

use audit::Trail;
use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use operators::revoke_key::RevokeKey;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step =
        RevokeKey { keys: aws.table("KEYS_TABLE")?, trail: Trail::new(aws.table("AUDIT_TABLE")?) };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
