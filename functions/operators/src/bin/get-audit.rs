//! Lambda function `get-audit`.

use audit::Trail;
use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use operators::get_audit::GetAudit;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let audit = aws.table("AUDIT_TABLE")?;
    let step = GetAudit { trail: Trail::new(audit.clone()), audit };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
