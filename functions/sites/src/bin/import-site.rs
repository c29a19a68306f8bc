//! Lambda function `import-site`.

use lambda::{Aws, Error, serve_step, source_operators};
use sites::{import_site::ImportSite, registration::Registrar};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(ImportSite {
        registrar: Registrar { sites: aws.table("SITES_TABLE")?, outbox: aws.outbox()? },
        operators: source_operators()?,
    })
    .await
}
