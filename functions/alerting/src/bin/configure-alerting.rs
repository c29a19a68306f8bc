//! Lambda function `configure-alerting`.

use alerting::configure_alerting::ConfigureAlerting;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ConfigureAlerting { alerting: aws.table("ALERTING_TABLE")?, outbox: aws.outbox()? })
        .await
}
