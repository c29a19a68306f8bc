//! Lambda function `publish-events`.

use events::{publish_events::PublishEvents, publisher::Publisher};
use lambda::{Aws, Error, env, serve_stream};
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "events"]).await?;
    let step = PublishEvents {
        publisher: Publisher {
            events: aws.table("EVENTS_TABLE")?,
            bus: aws_sdk_eventbridge::Client::new(aws.config()),
            bus_name: env("EVENT_BUS_NAME")?,
            quarantine: Quarantine::from_env(&aws, "publish-events")?,
        },
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, deadline| step.replay(record, deadline).await,
    )
    .await
}
