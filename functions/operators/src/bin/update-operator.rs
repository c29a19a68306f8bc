//! Lambda function `update-operator`.

use audit::Trail;
use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use operators::update_operator::UpdateOperator;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = UpdateOperator {
        operators: aws.table("OPERATORS_TABLE")?,
        trail: Trail::new(aws.table("AUDIT_TABLE")?),
    };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
