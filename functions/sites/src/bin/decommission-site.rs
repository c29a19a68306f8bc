//! Lambda function `decommission-site`.

use audit::Trail;
use aws_sdk_sfn::Client;
use contracts::Timestamp;
use lambda::{Aws, Error, env, serve_http};
use machines::StateMachine;
use sites::decommission_site::DecommissionSite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "states"]).await?;
    let step = DecommissionSite {
        sites: aws.table("SITES_TABLE")?,
        teardown: StateMachine {
            client: Client::new(aws.config()),
            arn: env("SITE_TEARDOWN_ARN")?,
        },
        trail: Trail::new(aws.table("AUDIT_TABLE")?),
    };
    serve_http(aws.limits()?.of_sagas(), async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
