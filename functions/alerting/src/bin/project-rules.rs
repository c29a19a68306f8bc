//! Lambda function `project-rules`.

use alerting::project_rules::ProjectRules;
use lambda::{Aws, Error, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ProjectRules { alerting: aws.table("ALERTING_TABLE")? }).await
}
