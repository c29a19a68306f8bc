//! Lambda function `close-site`.

use lambda::{Aws, Error, serve_step};
use sites::close_site::CloseSite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(CloseSite { sites: aws.table("SITES_TABLE")?, outbox: aws.outbox()? }).await
}
