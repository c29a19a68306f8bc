//! Lambda function `get-site`.

use lambda::{Aws, Error, serve_http};
use sites::get_site::GetSite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = GetSite { sites: aws.table("SITES_TABLE")? };
    serve_http(aws.limits()?, async |request, caller| step.handle(&caller, &request).await).await
}
