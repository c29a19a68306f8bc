//! Lambda function `reconcile-subscriptions`.

use std::time::Duration;

use billing::{provider::Provider, reconcile_subscriptions::ReconcileSubscriptions};
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "secretsmanager"]).await?;
    serve_step(ReconcileSubscriptions {
        billing: aws.table("BILLING_TABLE")?,
        provider: Provider::from_env(&aws)?,
        // Less than the function's timeout of 900 s.
        timeout: Duration::from_secs(880),
    })
    .await
}
