//! The program of `make demo`, which runs it after the deployment.
//!
//! It onboards eight real monitoring stations, one with a declined card and one with too few kits in stock. It sends a
//! day of readings of one of them and shows the results. The exit status is 0 only if all checks of the results pass.

mod progress;
mod readings;
mod report;
mod shown;
mod stations;
mod watch;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::json;
use tests::{Stack, api::Call, capture::Capture};
use uuid::Uuid;

use crate::stations::{SOURCE, Station, Via};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(untrue) if untrue.is_empty() => ExitCode::SUCCESS,
        Ok(untrue) => {
            terminal::print("\nNot true of what is shown above:");
            for what in untrue {
                terminal::print(format_args!("- {what}"));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            terminal::print(format_args!("\nThe demo could not be carried out: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<Vec<String>> {
    let stack = Stack::connect().await?;
    require_fresh(&stack).await?;
    let capture = Capture::start(&stack).await?;
    let stations = stations::all()?;

    stack.deliver(&stations::SENSORS, stations::DELIVERED).await?;
    terminal::print(format_args!("Kits delivered: {} of each metric.", stations::DELIVERED));
    let asked = ask(&stack, &stations).await?;
    terminal::print("Eight stations asked to be onboarded, four over HTTP and four by an event:");
    let onboarded = watch::onboard(&stack, &capture, &stations, asked).await?;
    let report::Findings { report, mut untrue } =
        report::examine(&stack, &capture, &stations, &onboarded).await?;
    terminal::print(format_args!("\n{}", report::table(&report)));
    terminal::print(format_args!("{}", report::summary(&report)));

    // Only an active site can send readings.
    let day = if untrue.is_empty() {
        let (station, ids) = stations
            .iter()
            .zip(&onboarded.ids)
            .find(|(station, _)| station.code == stations::ALAMOSA)
            .context("Alamosa")?;
        terminal::print(format_args!(
            "\n{} sends a day of readings, over a bad line:",
            station.name
        ));
        let day = readings::run(&stack, &capture, station, *ids).await?;
        untrue = day.untrue;
        terminal::print(format_args!("\n{}", shown::all(&day.report)));
        Some(day.report)
    } else {
        None
    };
    capture.stop(&stack).await?;
    let path = report::write(&report, day.as_ref())?;
    terminal::print(format_args!("\n{}", report::what_next(&stack, &report, day.as_ref(), &path)?));
    Ok(untrue)
}

/// Fails if the stack has sites. The report covers the stock and the customers of the whole stack.
async fn require_fresh(stack: &Stack) -> Result<()> {
    let answer = stack.call(Call::get("/sites?limit=1")).await?;
    if answer.status != 200 {
        bail!("GET /sites was answered with {answer}");
    }
    if answer.body["sites"] != json!([]) {
        bail!("there are sites already; run `make down`, then `make demo`, for a fresh stack");
    }
    Ok(())
}

/// Registers every station by its channel. Over HTTP, the response contains the site's id. By event, the event's id is
/// returned, which is the causation id of `SiteCreated`.
async fn ask(stack: &Stack, stations: &[Station]) -> Result<Vec<watch::Asked>> {
    let mut asked = Vec::new();
    for station in stations {
        let key = Uuid::new_v4().to_string();
        asked.push(match station.via {
            Via::Http => watch::Asked::Http(
                stack.register(&key, &station.registration).await.context(station.name.clone())?,
            ),
            Via::Event => {
                let detail = json!({ "registrationId": key, "site": station.registration });
                let id = stack.put_event(SOURCE, "SiteRegistrationRequested", &detail).await?;
                watch::Asked::Event(id)
            }
        });
    }
    Ok(asked)
}
