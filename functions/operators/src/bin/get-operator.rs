//! Lambda function `get-operator`.

use lambda::{Aws, Error, serve_http};
use operators::get_operator::GetOperator;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = GetOperator { operators: aws.table("OPERATORS_TABLE")? };
    serve_http(aws.limits()?, async |request, caller| step.handle(&caller, &request).await).await
}
