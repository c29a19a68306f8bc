//! Lambda function `project-site`.

use lambda::{Aws, Error, serve_step};
use sites::project_site::ProjectSite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ProjectSite { sites: aws.table("SITES_TABLE")? }).await
}
