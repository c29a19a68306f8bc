//! Lambda function `release-kits`.

use inventory::release_kits::ReleaseKits;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ReleaseKits { inventory: aws.table("INVENTORY_TABLE")?, outbox: aws.outbox()? })
        .await
}
