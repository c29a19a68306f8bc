//! Lambda function `sweep-events`.

use std::time::Duration;

use events::{publisher::Publisher, sweep_events::SweepEvents};
use lambda::{Aws, Error, env, serve_step};
use quarantine::Quarantine;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(SweepEvents {
        publisher: Publisher {
            events: aws.table("EVENTS_TABLE")?,
            bus: aws_sdk_eventbridge::Client::new(aws.config()),
            bus_name: env("EVENT_BUS_NAME")?,
            // The source is publish-events, because that function replays the records that are quarantined here.
            quarantine: Quarantine::from_env(&aws, "publish-events")?,
        },
        // The function's timeout is 30 s.
        timeout: Duration::from_secs(25),
    })
    .await
}
