//! Lambda function `update-site`.

use audit::Trail;
use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use sites::update_site::UpdateSite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = UpdateSite {
        sites: aws.table("SITES_TABLE")?,
        outbox: aws.outbox()?,
        trail: Trail::new(aws.table("AUDIT_TABLE")?),
    };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
