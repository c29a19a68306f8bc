//! Lambda function `remove-alerting`.

use alerting::remove_alerting::RemoveAlerting;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(RemoveAlerting { alerting: aws.table("ALERTING_TABLE")?, outbox: aws.outbox()? })
        .await
}
