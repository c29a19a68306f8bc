//! Sends a station's day of readings to the local stack, like a data logger.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Result;
use clap::Parser;
use contracts::SiteId;
use surfrad::Day;
use tests::{Stack, data_logger, meter::Meter};

/// Sends a SURFRAD day file to a site of the local stack, in bundles, as if it was measured yesterday. Sending it again
/// on the same day has no effect.
#[derive(Debug, Parser)]
struct Args {
    /// The day file, such as tests/data/surfrad-alamosa-2016-01-01.dat
    #[arg(long)]
    file: PathBuf,
    /// The id of the site. It needs a sensor for each quantity in the file
    #[arg(long)]
    site: SiteId,
    /// Length of a bundle in minutes
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1440))]
    bundle_minutes: u32,
    /// Bundles per call. With 1, each is sent by itself; with more, as a list
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=500))]
    bundles_per_call: u16,
    /// Sends every N-th bundle twice
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    twice_every: Option<u16>,
    /// Sends every N-th bundle after the one that follows it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..))]
    late_every: Option<u16>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::print_error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let day = Day::read(&args.file)?.moved_to_yesterday();
    let stack = Stack::connect().await?;
    let sensors: BTreeMap<_, _> = stack
        .sensors(args.site)
        .await?
        .into_iter()
        .map(|sensor| (sensor.metric, sensor.sensor_id))
        .collect();
    let bundles = day.bundles(args.site, &sensors, args.bundle_minutes)?;
    let every = |n: Option<u16>| -> BTreeSet<_> {
        n.map_or_else(BTreeSet::new, |n| {
            (0..bundles.len()).skip(usize::from(n) - 1).step_by(n.into()).collect()
        })
    };
    let order =
        data_logger::order(bundles.len(), &every(args.late_every), &every(args.twice_every));

    terminal::print(format_args!(
        "{}: {} rows, {} samples in {} bundles: {}.",
        day.station,
        day.rows,
        day.samples(),
        bundles.len(),
        day.flags()
    ));
    let mut meter = Meter::new("bundles", order.len());
    let mut retries = 0;
    for indexes in data_logger::calls(&order, args.bundles_per_call.into()) {
        let call: Vec<_> = indexes.iter().map(|index| &bundles[*index]).collect();
        retries += data_logger::send(&stack, &call).await?;
        for _ in indexes {
            meter.step();
        }
    }
    terminal::print(format_args!("All bundles were accepted; {retries} calls were retried."));
    Ok(())
}
