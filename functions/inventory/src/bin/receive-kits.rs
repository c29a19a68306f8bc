//! Lambda function `receive-kits`.

use inventory::receive_kits::ReceiveKits;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ReceiveKits { inventory: aws.table("INVENTORY_TABLE")? }).await
}
