//! The command `fieldctl sites`.

mod health;

use std::fmt;

use clap::{Subcommand, ValueEnum};
use contracts::{SiteId, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::{Call, query},
    commands::{LOOK, confirm, json_file},
    error::{CliError, Exit},
    output::{Progress, Screen, Tone},
    render::{Table, ago, plain},
    resolve,
    stack::Stack,
    trace::of_status,
};

/// The maximum page size of the API.
const LARGEST_PAGE: usize = 100;

/// Commands for sites.
#[derive(Debug, Subcommand)]
pub enum Sites {
    /// Lists sites: with --status the oldest first, otherwise in no particular order.
    List {
        /// Only sites with this status.
        #[arg(long, ignore_case = true)]
        status: Option<Status>,
        /// The maximum number of sites.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows a site: status, sensors, its onboarding step by step.
    Show {
        /// The site: its id, the first digits of it, or its name.
        site: String,
    },
    /// Shows when a site's sensors last sent, what is missing, and what was refused or quarantined.
    ///
    /// Exit codes: 0 the site reports; 1 it is silent, or something was refused or quarantined; 5 something could
    /// not be read.
    Health {
        /// The site: its id, the first digits of it, or its name.
        site: String,
    },
    /// Registers a site, which starts its onboarding.
    Onboard {
        /// The JSON file of the registration, as described in docs/integrating.md; - for standard input.
        file: String,
        /// The idempotency key. A registration that is repeated with its key creates no second site. The default is a
        /// new key.
        #[arg(long)]
        idempotency_key: Option<String>,
        /// Wait until the site is ACTIVE or REJECTED.
        #[arg(long)]
        wait: bool,
    },
    /// Takes a site out of service permanently.
    Teardown {
        /// The site: its id, the first digits of it, or its name.
        site: String,
        /// Wait until the site is DECOMMISSIONED.
        #[arg(long)]
        wait: bool,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

/// The status of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Status {
    /// The onboarding is running.
    Onboarding,
    /// In service.
    Active,
    /// The onboarding failed and was undone.
    Rejected,
    /// Being taken out of service.
    Decommissioning,
    /// Permanently out of service.
    Decommissioned,
}

impl Sites {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { status, limit } => list(stack, screen, status, limit).await,
            Self::Show { site } => show(stack, screen, resolve::site(stack, &site).await?).await,
            Self::Health { site } => {
                health::run(stack, screen, resolve::site(stack, &site).await?).await
            }
            Self::Onboard { file, idempotency_key, wait } => {
                onboard(stack, screen, &file, idempotency_key, wait).await
            }
            Self::Teardown { site, wait, yes } => {
                let site = resolve::site(stack, &site).await?;
                teardown(stack, screen, site, wait, yes).await
            }
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("?")
}

/// A site whose onboarding may be undone, since it is not in service.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undoable {
    /// The site's id.
    pub site_id: SiteId,
    /// The site's name.
    pub name: String,
    /// The site's status, for example `DECOMMISSIONING`.
    pub status: String,
}

impl fmt::Display for Undoable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.status)
    }
}

/// Reads a site that an undo would change. Refuses a site that is in service: only `sites teardown`
/// takes a site out of service.
pub async fn undoable(stack: &Stack, site: SiteId) -> Result<Undoable, CliError> {
    let there = stack.site(site).await?;
    let (name, status) = (text(&there, "name").to_owned(), text(&there, "status").to_owned());
    if status == "ACTIVE" {
        return Err(CliError::new(Exit::Refused, format!("site {site} ({name}) is in service"))
            .advise(format!("to take it out of service: fieldctl sites teardown {site}")));
    }
    Ok(Undoable { site_id: site, name, status })
}

async fn list(
    stack: &Stack,
    screen: &mut Screen,
    status: Option<Status>,
    limit: usize,
) -> Result<Exit, CliError> {
    let mut table = Table::new(["STATUS", "SITE", "REGISTERED", "NAME", "OPERATOR"]);
    let (mut left, mut next) = (limit, None);
    while left > 0 {
        let query = query(&[
            ("status", status.map(|status| format!("{status:?}").to_uppercase())),
            ("limit", Some(left.min(LARGEST_PAGE).to_string())),
            ("next", next),
        ]);
        let page = stack.call(Call::get(format!("/sites?{query}"))).await?;
        let sites = page["sites"].as_array().map_or(&[][..], Vec::as_slice);
        left = left.saturating_sub(sites.len());
        if screen.json {
            sites.iter().try_for_each(|site| screen.entry(site))?;
        } else {
            let row = |site| {
                let status = text(site, "status");
                let registered = text(site, "createdAt").parse::<Timestamp>();
                let registered = registered.map_or("?".to_owned(), |at| ago(screen.now, at));
                vec![
                    (status.to_owned(), of_status(status)),
                    plain(screen.id(text(site, "siteId"))),
                    (registered, Tone::Faint),
                    (text(site, "name").to_owned(), Tone::Strong),
                    plain(text(site, "operator")),
                ]
            };
            let rows: Vec<_> = sites.iter().map(row).collect();
            table.page(screen, &rows)?;
        }
        next = page["next"].as_str().map(str::to_owned);
        if next.is_none() {
            break;
        }
    }
    if left == limit && !screen.json {
        screen.line("There are no such sites.")?;
    }
    Ok(Exit::Done)
}

async fn show(stack: &Stack, screen: &mut Screen, site: SiteId) -> Result<Exit, CliError> {
    let site = stack.site(site).await?;
    if screen.json {
        screen.document(&site)?;
        return Ok(Exit::Done);
    }
    let location = &site["location"];
    let place = format!(
        "{} N, {} E, {} m",
        location["latitude"], location["longitude"], location["elevationM"]
    );
    screen.field("site", Tone::Strong, text(&site, "name"))?;
    screen.field("status", of_status(text(&site, "status")), text(&site, "status"))?;
    screen.field("siteId", Tone::Plain, text(&site, "siteId"))?;
    screen.field("operator", Tone::Plain, text(&site, "operator"))?;
    screen.field("location", Tone::Plain, &place)?;
    let onboarding = &site["onboarding"];
    screen.field("onboardingId", Tone::Plain, text(onboarding, "onboardingId"))?;
    if let Some(failure) = onboarding.get("failure") {
        screen.field("failed at", Tone::Bad, text(failure, "step"))?;
        screen.field("error", Tone::Bad, text(failure, "error"))?;
        screen.field("message", Tone::Plain, text(failure, "message"))?;
    }
    screen.line("")?;
    let steps = onboarding["steps"].as_array().into_iter().flatten().map(|step| {
        let status = text(step, "status");
        vec![
            plain(text(step, "name")),
            (status.to_owned(), of_status(status)),
            (text(step, "at").to_owned(), Tone::Faint),
        ]
    });
    Table::new(["STEP", "STATUS", "AT"]).page(screen, &steps.collect::<Vec<_>>())?;
    screen.line("")?;
    let sensors = site["sensors"].as_array().into_iter().flatten().map(|sensor| {
        vec![
            plain(text(sensor, "sensorId")),
            plain(text(sensor, "unit")),
            plain(text(sensor, "metric")),
        ]
    });
    Table::new(["SENSOR", "UNIT", "METRIC"]).page(screen, &sensors.collect::<Vec<_>>())?;
    Ok(Exit::Done)
}

async fn onboard(
    stack: &Stack,
    screen: &mut Screen,
    file: &str,
    key: Option<String>,
    wait: bool,
) -> Result<Exit, CliError> {
    let registration = json_file(file)?;
    let key = key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let call = Call::post("/sites", registration.to_string()).key(&key);
    let answer = stack.call(call).await.map_err(|trouble| match trouble.exit {
        // It is not known whether the site was registered. With the same key, a retry creates no second site.
        Exit::Aws => trouble.advise(format!("to try again: --idempotency-key {key}")),
        _ => trouble,
    })?;
    if !screen.json {
        screen.field("siteId", Tone::Strong, text(&answer, "siteId"))?;
        screen.field("onboardingId", Tone::Plain, text(&answer, "onboardingId"))?;
        screen.field("key", Tone::Faint, &key)?;
        screen.flush()?;
    }
    if !wait {
        if screen.json {
            screen.document(&answer)?;
        }
        return Ok(Exit::Done);
    }
    let site: SiteId = text(&answer, "siteId")
        .parse()
        .map_err(|_| CliError::new(Exit::Failed, format!("the API answered no site: {answer}")))?;
    wait_while(stack, screen, site, "ONBOARDING", "ACTIVE").await
}

async fn teardown(
    stack: &Stack,
    screen: &mut Screen,
    site: SiteId,
    wait: bool,
    yes: bool,
) -> Result<Exit, CliError> {
    let there = stack.site(site).await?;
    let question = format!(
        "Take {} ({}) of {} out of service, for good?",
        text(&there, "name"),
        text(&there, "status"),
        text(&there, "operator")
    );
    confirm(&question, yes)?;
    let answer = stack.call(Call::delete(format!("/sites/{site}"))).await?;
    if wait {
        return wait_while(stack, screen, site, "DECOMMISSIONING", "DECOMMISSIONED").await;
    }
    if screen.json {
        screen.document(&answer)?;
    } else {
        screen.line(&format!("Site {site} is being taken out of service."))?;
    }
    Ok(Exit::Done)
}

/// Waits until the site's status is not `begun` any more, and prints it. Any status other than `good` is a failure.
async fn wait_while(
    stack: &Stack,
    screen: &mut Screen,
    site: SiteId,
    begun: &str,
    good: &str,
) -> Result<Exit, CliError> {
    let progress = Progress::spinner();
    let there = loop {
        let there = stack.site(site).await?;
        let status = text(&there, "status");
        if status != begun {
            break there;
        }
        let steps = there["onboarding"]["steps"].as_array().into_iter().flatten();
        let steps: Vec<_> = steps.map(|it| text(it, "name")).collect();
        progress.show(&format!("{status}: {}", steps.join(", ")));
        tokio::time::sleep(LOOK).await;
    };
    progress.clear();
    let status = text(&there, "status");
    let failure = &there["onboarding"]["failure"];
    if screen.json {
        screen.document(&json!({
            "siteId": site, "onboardingId": there["onboarding"]["onboardingId"], "status": status,
            "failure": failure,
        }))?;
    } else {
        screen.field("status", of_status(status), status)?;
        if failure.is_object() {
            let told =
                ["step", "error", "message"].map(|name| text(failure, name).to_owned()).join(": ");
            screen.field("failed at", Tone::Bad, &told)?;
        }
    }
    Ok(if status == good { Exit::Done } else { Exit::Failed })
}
