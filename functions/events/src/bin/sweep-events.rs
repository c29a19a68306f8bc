//! Lambda function `sweep-events`.

use std::time::Duration;

use events::{
    publisher::{Bus, EventStream, Memory, Publisher},
    sweep_events::SweepEvents,
};
use lambda::{Aws, Error, env, serve_step};
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(SweepEvents {
        publisher: Publisher {
            events: aws.table("EVENTS_TABLE")?,
            stream: EventStream::new(&aws, env("EVENTS_STREAM")?),
            bus: Bus::new(&aws, env("EVENT_BUS_NAME")?),
            // The source is publish-events, because that function replays the records that are quarantined here.
            quarantine: Quarantine::from_env(&aws, "publish-events")?,
            memory: Memory::default(),
        },
        // The function's timeout is 30 s.
        timeout: Duration::from_secs(25),
    })
    .await
}
