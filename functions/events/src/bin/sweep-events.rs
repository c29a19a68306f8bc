//! Lambda function `sweep-events`.

use std::time::Duration;

use events::{publisher::Publisher, sweep_events::SweepEvents};
use lambda::{Aws, Error, env, serve_step};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    serve_step(SweepEvents {
        publisher: Publisher {
            events: aws.table("EVENTS_TABLE")?,
            bus: aws_sdk_eventbridge::Client::new(aws.config()),
            bus_name: env("EVENT_BUS_NAME")?,
        },
        // The function has 30 s.
        time: Duration::from_secs(25),
    })
    .await
}
