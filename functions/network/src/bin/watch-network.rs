//! Lambda function `watch-network`.

use consumer::{Consumer, serve};
use contracts::consumers::WATCH_NETWORK;
use lambda::{Aws, Error};
use network::watch_network::Counts;
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve(Consumer {
        generations: Counts { network: aws.table("NETWORK_TABLE")? },
        log: aws.table("EVENTS_TABLE")?,
        quarantine: Quarantine::from_env(&aws, WATCH_NETWORK)?,
    })
    .await
}
