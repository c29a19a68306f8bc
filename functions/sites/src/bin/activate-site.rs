//! Lambda function `activate-site`.

use lambda::{Aws, Error, serve_step};
use sites::activate_site::ActivateSite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ActivateSite { sites: aws.table("SITES_TABLE")?, outbox: aws.outbox()? }).await
}
