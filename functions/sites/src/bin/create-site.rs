//! Lambda function `create-site`.

use contracts::Timestamp;
use lambda::{Aws, Error, serve_http};
use sites::{create_site::CreateSite, registration::Registrar};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = CreateSite(Registrar { sites: aws.table("SITES_TABLE")?, outbox: aws.outbox()? });
    serve_http(aws.limits()?.of_sagas(), async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
