//! Lambda function `get-summary`.

use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use network::get_summary::GetSummary;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = GetSummary { network: aws.table("NETWORK_TABLE")? };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
