//! Lambda function `get-audit`.

use lambda::{Aws, Error, serve_http};
use operators::get_audit::GetAudit;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = GetAudit { audit: aws.table("AUDIT_TABLE")? };
    serve_http(aws.limits()?, async |request, caller| step.handle(&caller, &request).await).await
}
