//! Lambda function `store-readings`.

use std::time::Duration;

use lambda::{Aws, ConfigError, Error, env, serve_stream};
use quarantine::Quarantine;
use telemetry::{register::Register, store_readings::StoreReadings};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let aws = Aws::start(&["dynamodb"]).await?;
    let readings = aws.table("READINGS_TABLE")?;
    let step = StoreReadings {
        register: Register::new(readings.clone(), register_age()?),
        readings,
        quarantine: Quarantine::from_env(&aws, "store-readings")?,
    };
    serve_stream(
        async |batch, deadline| step.handle(batch, deadline).await,
        async |record, _| step.replay(record).await,
    )
    .await
}

fn register_age() -> Result<Duration, ConfigError> {
    let name = "REGISTER_AGE_SECONDS";
    let text = env(name)?;
    let seconds = text
        .parse()
        .map_err(|_| ConfigError { name, problem: format!("is {text:?}; give a number") })?;
    Ok(Duration::from_secs(seconds))
}
