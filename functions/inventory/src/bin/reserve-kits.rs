//! Lambda function `reserve-kits`.

use inventory::reserve_kits::ReserveKits;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ReserveKits { inventory: aws.table("INVENTORY_TABLE")?, outbox: aws.outbox()? })
        .await
}
