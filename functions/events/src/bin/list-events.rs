//! Lambda function `list-events`.

use contracts::Timestamp;
use events::list_events::ListEvents;
use lambda::{Aws, Error, serve_http};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let step = ListEvents { events: aws.table("EVENTS_TABLE")? };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
