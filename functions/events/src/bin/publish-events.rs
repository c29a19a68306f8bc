//! Lambda function `publish-events`.

use events::{
    publish_events::PublishEvents,
    publisher::{Bus, EventStream, Memory, Publisher},
};
use lambda::{Aws, Error, env, serve_stream};
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb", "events", "kinesis"]).await?;
    let step = PublishEvents {
        publisher: Publisher {
            events: aws.table("EVENTS_TABLE")?,
            stream: EventStream::new(&aws, env("EVENTS_STREAM")?),
            bus: Bus::new(&aws, env("EVENT_BUS_NAME")?),
            quarantine: Quarantine::from_env(&aws, "publish-events")?,
            memory: Memory::default(),
        },
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, deadline| step.replay(record, deadline).await,
    )
    .await
}
