//! Lambda function `append-event`.

use contracts::Timestamp;
use events::{append_event::AppendEvent, guards::Sources};
use lambda::{Aws, Error, serve_http, source_operators};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let guards = aws.table("GUARDS_TABLE")?;
    let step = AppendEvent {
        events: aws.table("EVENTS_TABLE")?,
        sources: Sources::new(guards.clone(), source_operators()?),
        guards,
    };
    serve_http(aws.limits()?, async |request, caller| {
        step.handle(&caller, &request, Timestamp::now()).await
    })
    .await
}
