//! The command `fieldctl sites`.

mod health;
mod migrate;

use std::fmt;

use clap::{Subcommand, ValueEnum};
use contracts::{SiteId, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    api::{ApiResponse, Call, MAX_PAGE_SIZE, query},
    commands::{POLL_INTERVAL, confirm, json_file},
    error::{CliError, Exit},
    output::{Progress, Screen, Tone},
    render::{Table, ago, plain},
    resolve,
    stack::Stack,
    trace::status_tone,
};

/// Commands for sites.
#[derive(Debug, Subcommand)]
pub enum Sites {
    /// Lists sites, one status after the other, each with the oldest site first.
    List {
        /// Only sites with this status.
        #[arg(long, ignore_case = true)]
        status: Option<Status>,
        /// The maximum number of sites.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Shows a site: status, location, contact, its onboarding step by step, sensors.
    Show {
        /// The site: its id, the first digits of it, or its name.
        site: String,
    },
    /// Shows when a site's sensors last sent, what is missing, and what was refused or quarantined.
    ///
    /// Exit codes: 0 there is no finding; 1 there is one, such as a silent sensor, or readings that were refused or
    /// quarantined; 5 something could not be read.
    Health {
        /// The site: its id, the first digits of it, or its name.
        site: String,
    },
    /// Registers a site, which starts its onboarding.
    Onboard {
        /// The JSON file of the registration, as described in docs/integrating.md; - for standard input.
        file: String,
        /// The idempotency key. Repeating a registration with the same key creates no second site. The default is a new
        /// key.
        #[arg(long)]
        idempotency_key: Option<String>,
        /// Wait until the site is ACTIVE or REJECTED.
        #[arg(long)]
        wait: bool,
    },
    /// Changes the name, the contact or the location of an active site, and shows the site.
    Update {
        /// The site: its id, the first digits of it, or its name.
        site: String,
        /// The JSON file of the changes, a merge patch as described in docs/integrating.md; - for standard input.
        #[arg(long)]
        file: String,
        /// Change the site only if it still has this ETag, which `sites show` prints.
        #[arg(long, value_name = "ETAG")]
        if_match: Option<String>,
    },
    /// Adds the operator to the sites of releases before there were operators.
    ///
    /// Run it once after the upgrade. Until then the API does not list these sites. The command does not call the API:
    /// it reads and writes the sites table directly. It can be run again at any time.
    Migrate,
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
            Self::Show { site } => {
                let site = resolve::site(stack, &site).await?;
                let response = stack.success(Call::get(format!("/sites/{site}"))).await?;
                show(screen, &response)
            }
            Self::Update { site, file, if_match } => {
                let site = resolve::site(stack, &site).await?;
                let patch: Value = json_file(&file)?;
                let call = Call::patch(format!("/sites/{site}"), patch.to_string());
                let call = if_match.iter().fold(call, |call, tag| call.if_match(tag));
                show(screen, &stack.success(call).await?)
            }
            Self::Health { site } => {
                health::run(stack, screen, resolve::site(stack, &site).await?).await
            }
            Self::Migrate => migrate::run(stack, screen).await,
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

/// A site that is not in service, so its onboarding may be undone.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoableSite {
    /// The site's id.
    pub site_id: SiteId,
    /// The site's name.
    pub name: String,
    /// The site's status, for example `DECOMMISSIONING`.
    pub status: String,
}

impl fmt::Display for UndoableSite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.status)
    }
}

/// Reads a site that an undo would change. Refuses a site that is in service: only `sites teardown`
/// takes a site out of service.
///
/// The site is read from its table, because it may belong to any operator.
pub async fn undoable_site(stack: &Stack, site: SiteId) -> Result<UndoableSite, CliError> {
    let row = stack.site_row(site).await?;
    let row = row.ok_or_else(|| CliError::not_found(format!("there is no site {site}")))?;
    let (name, status) = (row.name, row.status);
    if status == "ACTIVE" {
        return Err(CliError::new(Exit::Refused, format!("site {site} ({name}) is in service"))
            .advise(format!(
                "only this command takes it out of service: fieldctl sites teardown {site}"
            )));
    }
    Ok(UndoableSite { site_id: site, name, status })
}

async fn list(
    stack: &Stack,
    screen: &mut Screen,
    status: Option<Status>,
    limit: usize,
) -> Result<Exit, CliError> {
    let mut table = Table::new(["STATUS", "SITE", "REGISTERED", "NAME", "OPERATOR"]);
    let (mut remaining, mut next) = (limit, None);
    while remaining > 0 {
        let query = query(&[
            ("status", status.map(|status| format!("{status:?}").to_uppercase())),
            ("limit", Some(remaining.min(MAX_PAGE_SIZE).to_string())),
            ("next", next),
        ]);
        let page = stack.call(Call::get(format!("/sites?{query}"))).await?;
        let sites = page["sites"].as_array().map_or(&[][..], Vec::as_slice);
        remaining = remaining.saturating_sub(sites.len());
        if screen.json {
            sites.iter().try_for_each(|site| screen.entry(site))?;
        } else {
            let row = |site| {
                let status = text(site, "status");
                let registered = text(site, "createdAt").parse::<Timestamp>();
                let registered = registered.map_or("?".to_owned(), |at| ago(screen.now, at));
                vec![
                    (status.to_owned(), status_tone(status)),
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
    if remaining == limit && !screen.json {
        screen.line("No sites found.")?;
    }
    Ok(Exit::Done)
}

/// Prints the site in a response of the API.
fn show(screen: &mut Screen, response: &ApiResponse) -> Result<Exit, CliError> {
    let ApiResponse { body: site, etag, .. } = response;
    if screen.json {
        screen.document(site)?;
        return Ok(Exit::Done);
    }
    let location = &site["location"];
    let place = format!(
        "{} N, {} E, {} m",
        location["latitude"], location["longitude"], location["elevationM"]
    );
    screen.field("site", Tone::Strong, text(site, "name"))?;
    screen.field("status", status_tone(text(site, "status")), text(site, "status"))?;
    screen.field("siteId", Tone::Plain, text(site, "siteId"))?;
    screen.field("operator", Tone::Plain, text(site, "operator"))?;
    if let Some(operator) = site["operatorId"].as_str() {
        screen.field("operatorId", Tone::Plain, operator)?;
    }
    screen.field("location", Tone::Plain, &place)?;
    if let Some(offset) = site["utcOffset"].as_str() {
        screen.field("utcOffset", Tone::Plain, offset)?;
    }
    let contact = ["name", "email", "phone"].map(|name| site["contact"][name].as_str());
    let contact: Vec<_> = contact.into_iter().flatten().collect();
    if !contact.is_empty() {
        screen.field("contact", Tone::Plain, &contact.join(", "))?;
    }
    if let Some(etag) = etag {
        screen.field("etag", Tone::Faint, etag)?;
    }
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
            (status.to_owned(), status_tone(status)),
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
    let registration: Value = json_file(file)?;
    let key = key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let call = Call::post("/sites", registration.to_string()).idempotency_key(&key);
    let response = stack.call(call).await.map_err(|error| {
        if error.may_be_done {
            // With the same key, a retry creates no second site.
            error.advise(format!("to retry safely, add --idempotency-key {key}"))
        } else {
            error
        }
    })?;
    if !screen.json {
        screen.field("siteId", Tone::Strong, text(&response, "siteId"))?;
        screen.field("onboardingId", Tone::Plain, text(&response, "onboardingId"))?;
        screen.field("key", Tone::Faint, &key)?;
        screen.flush()?;
    }
    if !wait {
        if screen.json {
            screen.document(&response)?;
        }
        return Ok(Exit::Done);
    }
    let site: SiteId = text(&response, "siteId").parse().map_err(|_| {
        CliError::new(Exit::Failed, format!("the API's response has no valid siteId: {response}"))
    })?;
    wait_while(stack, screen, site, "ONBOARDING", "ACTIVE").await
}

async fn teardown(
    stack: &Stack,
    screen: &mut Screen,
    site: SiteId,
    wait: bool,
    yes: bool,
) -> Result<Exit, CliError> {
    let site_json = stack.site(site).await?;
    let question = format!(
        "Take {} ({}) of {} out of service permanently?",
        text(&site_json, "name"),
        text(&site_json, "status"),
        text(&site_json, "operator")
    );
    confirm(&question, yes)?;
    let response = stack.call(Call::delete(format!("/sites/{site}"))).await?;
    if wait {
        return wait_while(stack, screen, site, "DECOMMISSIONING", "DECOMMISSIONED").await;
    }
    if screen.json {
        screen.document(&response)?;
    } else {
        screen.line(&format!("Site {site} is being taken out of service."))?;
    }
    Ok(Exit::Done)
}

/// Waits until the site's status is no longer `pending`, and prints the new status. Any status other than `expected` is
/// a failure.
async fn wait_while(
    stack: &Stack,
    screen: &mut Screen,
    site: SiteId,
    pending: &str,
    expected: &str,
) -> Result<Exit, CliError> {
    let progress = Progress::spinner();
    let site_json = loop {
        let site_json = stack.site(site).await?;
        let status = text(&site_json, "status");
        if status != pending {
            break site_json;
        }
        let steps = site_json["onboarding"]["steps"].as_array().into_iter().flatten();
        let steps: Vec<_> = steps.map(|it| text(it, "name")).collect();
        progress.show(&format!("{status}: {}", steps.join(", ")));
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    progress.clear();
    let status = text(&site_json, "status");
    let failure = &site_json["onboarding"]["failure"];
    if screen.json {
        screen.document(&json!({
            "siteId": site, "onboardingId": site_json["onboarding"]["onboardingId"], "status": status,
            "failure": failure,
        }))?;
    } else {
        screen.field("status", status_tone(status), status)?;
        if failure.is_object() {
            let failure =
                ["step", "error", "message"].map(|name| text(failure, name).to_owned()).join(": ");
            screen.field("failed at", Tone::Bad, &failure)?;
        }
    }
    Ok(if status == expected { Exit::Done } else { Exit::Failed })
}
