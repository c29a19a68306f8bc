//! The program of `make demo`, which runs it after the deployment.
//!
//! It onboards eight real monitoring stations, one with a declined card and one with too few kits in stock. It sends a
//! day of readings of one of them, corrects some, and shows the results. The exit status is 0 only if all checks of the
//! results pass.

mod corrections;
mod progress;
mod readings;
mod readings_view;
mod report;
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
        Ok(violations) if violations.is_empty() => ExitCode::SUCCESS,
        Ok(violations) => {
            terminal::print("\nFAILED: some results are not as expected:");
            for violation in violations {
                terminal::print(format_args!("- {violation}"));
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            terminal::print(format_args!("\nThe demo stopped because of an error: {error:#}"));
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
    terminal::print(format_args!(
        "Delivered {} sensor kits of each metric to the stock.",
        stations::DELIVERED
    ));
    let registrations = register_all(&stack, &stations).await?;
    terminal::print(
        "Registered eight stations, four over HTTP and four by an event. Their onboardings:",
    );
    let onboarded = watch::onboard(&stack, &capture, &stations, registrations).await?;
    let report::OnboardingFindings { report, mut violations } =
        report::collect(&stack, &capture, &stations, &onboarded).await?;
    terminal::print(format_args!("\n{}", report::table(&report)));
    terminal::print(format_args!("{}", report::summary(&report)));

    // Only an active site can send readings.
    let day = if violations.is_empty() {
        let (station, ids) = stations
            .iter()
            .zip(&onboarded.ids)
            .find(|(station, _)| station.code == stations::ALAMOSA)
            .context("no station Alamosa")?;
        terminal::print(format_args!(
            "\nSending a day of readings of {} over a simulated bad connection:",
            station.name
        ));
        let day = readings::run(&stack, &capture, station, *ids).await?;
        violations = day.violations;
        terminal::print(format_args!("\n{}", readings_view::render(&day.report)));
        Some(day.report)
    } else {
        None
    };
    capture.stop(&stack).await?;
    let path = report::write(&report, day.as_ref())?;
    terminal::print(format_args!(
        "\n{}",
        report::next_commands(&stack, &report, day.as_ref(), &path)?
    ));
    Ok(violations)
}

/// Fails if the stack has sites: the report covers the stock and the customers of the whole stack, so earlier sites
/// would change it.
async fn require_fresh(stack: &Stack) -> Result<()> {
    let response = stack.call(Call::get("/sites?limit=1")).await?;
    if response.status != 200 {
        bail!("GET /sites returned {response}");
    }
    if response.body["sites"] != json!([]) {
        bail!(
            "the stack already has sites; the demo needs a fresh stack: run `make down`, then `make demo`"
        );
    }
    Ok(())
}

/// Registers every station through its channel. The result has the site's id for HTTP. For an event, it has the
/// event's id, which becomes the causation id of `SiteCreated`.
async fn register_all(stack: &Stack, stations: &[Station]) -> Result<Vec<watch::Registration>> {
    let mut registrations = Vec::new();
    for station in stations {
        let key = Uuid::new_v4().to_string();
        registrations.push(match station.via {
            Via::Http => watch::Registration::Http(
                stack.register(&key, &station.registration).await.context(station.name.clone())?,
            ),
            Via::Event => {
                let detail = json!({ "registrationId": key, "site": station.registration });
                let id = stack.put_event(SOURCE, "SiteRegistrationRequested", &detail).await?;
                watch::Registration::Event(id)
            }
        });
    }
    Ok(registrations)
}
