//! The command `fieldctl events`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use clap::{Args, Subcommand};
use contracts::{EntityType, OnboardingId, SiteId, Timestamp};
use futures_util::{StreamExt, TryStreamExt, future::try_join_all, stream};
use serde_json::{Value, json};
use store::EventRow;
use tokio::time::Instant;

use crate::{
    error::{CliError, Exit},
    event_log::{Period, sort},
    failure_pager::{did_you_mean, onboarding_exists},
    output::{Screen, Tone},
    render::{Cell, Table, mask_secrets, parse_time, plain},
    stack::Stack,
    summary,
};

/// The interval at which `tail` polls the log.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// How far back each poll of `tail` reads, in milliseconds. An event has the time of its transaction, and the indexes
/// are eventually consistent, so an event may appear late.
const MAX_DELAY_MILLIS: i64 = 30_000;
/// The maximum number of concurrent lookups of sites.
const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// The maximum number of events of a type that `tail` reads at a time. It does not print further ones.
const MAX_PAGE: usize = 1000;

/// Commands for the event log.
#[derive(Debug, Subcommand)]
pub enum Events {
    /// Lists the last events in chronological order, up to --limit.
    List {
        /// The selected events.
        #[command(flatten)]
        selection: EventSelection,
        /// Only events since this time: RFC 3339, or an age such as 2h.
        #[arg(long, value_parser = parse_time)]
        from: Option<Timestamp>,
        /// Only events before this time.
        #[arg(long, value_parser = parse_time)]
        to: Option<Timestamp>,
        /// The maximum number of events.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Prints events as they are committed, until Ctrl-C.
    Tail {
        /// Only events of this type.
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// Stop after this number of seconds.
        #[arg(long)]
        seconds: Option<u64>,
    },
}

/// The selection of events.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct EventSelection {
    /// Only events of this entity: site/ID, reservation/ID, ...
    #[arg(long, value_name = "TYPE/ID")]
    entity: Option<String>,
    /// Only events of this type, such as SiteActivated.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only events of this onboarding.
    #[arg(long, value_name = "ONBOARDING")]
    correlation: Option<OnboardingId>,
}

impl Events {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { selection, from, to, limit } => {
                let period = Period { from, to };
                let events = list(stack, &selection, period, limit).await?;
                if events.is_empty() {
                    selection.check(stack).await?;
                    if !screen.json {
                        screen.line(&format!("No events {}{period}.", selection.describe()))?;
                    }
                }
                print(stack, screen, &mut table(), &mut NameCache::new(), &events).await?;
            }
            Self::Tail { kind, seconds } => {
                let kinds = match kind {
                    Some(kind) => vec![event_type(&kind)?],
                    None => event_types(),
                };
                let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
                tail(stack, screen, &kinds, end).await?;
            }
        }
        Ok(Exit::Done)
    }
}

impl EventSelection {
    /// Describes which events were listed, such as `of type SiteActivated`.
    fn describe(&self) -> String {
        match self {
            Self { entity: Some(entity), .. } => format!("of {entity}"),
            Self { kind: Some(kind), .. } => format!("of type {kind}"),
            Self { correlation, .. } => {
                format!("of onboarding {}", correlation.map_or(String::new(), |id| id.to_string()))
            }
        }
    }

    /// Checks that the selected entity or onboarding has at least one event, in any period.
    async fn check(&self, stack: &Stack) -> Result<(), CliError> {
        if let Some(onboarding) = self.correlation {
            onboarding_exists(stack, onboarding).await?;
        } else if self.entity.is_some() && list(stack, self, Period::default(), 1).await?.is_empty()
        {
            return Err(CliError::not_found(format!("there are no events {}", self.describe()))
                .advise("`fieldctl trace <site>` shows the site's events with their entities"));
        }
        Ok(())
    }
}

/// Returns every type of event.
fn event_types() -> Vec<&'static str> {
    contracts::events::schemas().into_iter().map(|(name, _, _)| name).collect()
}

fn event_type(kind: &str) -> Result<&'static str, CliError> {
    let types = event_types();
    types.iter().find(|name| name.eq_ignore_ascii_case(kind)).copied().ok_or_else(|| {
        let suggestion = did_you_mean(kind, &types);
        CliError::usage(format!("there is no event type {kind:?}"))
            .advise(format!("{suggestion}the event types are {}", types.join(", ")))
    })
}

async fn list(
    stack: &Stack,
    selection: &EventSelection,
    period: Period,
    limit: usize,
) -> Result<Vec<EventRow>, CliError> {
    if let Some(kind) = &selection.kind {
        stack.events_of_type(event_type(kind)?, period, limit).await
    } else if let Some(onboarding) = selection.correlation {
        stack.events_of_onboarding(onboarding, period, limit).await
    } else {
        let entity = selection.entity.as_deref().unwrap_or_default();
        let Some((kind, id)) = entity.split_once(['/', '#']) else {
            return Err(CliError::usage(format!("{entity:?} is not an entity"))
                .advise("use TYPE/ID, such as site/55115657-a433-553f-959b-29ae8465145d"));
        };
        if !EntityType::NAMES.contains(&kind) {
            let suggestion = did_you_mean(kind, &EntityType::NAMES);
            return Err(CliError::usage(format!("there is no entity type {kind:?}")).advise(
                format!("{suggestion}the entity types are {}", EntityType::NAMES.join(", ")),
            ));
        }
        stack.events_of_entity(&format!("{kind}#{id}"), period, limit).await
    }
}

/// Prints new events of those types, each once, until `end` or Ctrl-C.
async fn tail(
    stack: &Stack,
    screen: &mut Screen,
    kinds: &[&str],
    end: Option<Instant>,
) -> Result<(), CliError> {
    let (mut table, mut names) = (table(), NameCache::new());
    let started = Timestamp::now();
    let mut seen = BTreeMap::<(String, u64), Timestamp>::new();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        let from = Timestamp::now().plus_millis(-MAX_DELAY_MILLIS).max(started);
        let period = Period { from: Some(from), to: None };
        let queries = kinds.iter().map(|kind| stack.events_of_type(kind, period, MAX_PAGE));
        let mut new: Vec<_> = try_join_all(queries).await?.into_iter().flatten().collect();
        new.retain(|it| seen.insert((it.entity.clone(), it.sequence), it.occurred_at).is_none());
        sort(&mut new);
        print(stack, screen, &mut table, &mut names, &new).await?;
        screen.flush()?;
        seen.retain(|_, at| *at >= from);
        if end.is_some_and(|end| Instant::now() + POLL_INTERVAL > end) {
            return Ok(());
        }
        tokio::select! {
            _ = &mut interrupted => return Ok(()),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

/// The names of sites, each looked up once. `None` for a site whose first event is not in the log.
type NameCache = BTreeMap<SiteId, Option<String>>;

/// Looks up the names that are not known yet.
async fn look_up_names(
    stack: &Stack,
    names: &mut NameCache,
    sites: impl Iterator<Item = SiteId>,
) -> Result<(), CliError> {
    let unknown: BTreeSet<_> = sites.filter(|site| !names.contains_key(site)).collect();
    let found = stream::iter(unknown)
        .map(|site| async move { Ok::<_, CliError>((site, stack.name_of_site(site).await?)) })
        .buffer_unordered(MAX_CONCURRENT_LOOKUPS)
        .try_collect::<Vec<_>>();
    names.extend(found.await?);
    Ok(())
}

fn table() -> Table {
    Table::new(["", "OCCURRED", "TYPE", "NO.", "SITE", "WHAT"])
}

async fn print(
    stack: &Stack,
    screen: &mut Screen,
    table: &mut Table,
    names: &mut NameCache,
    events: &[EventRow],
) -> Result<(), CliError> {
    if screen.json {
        return events.iter().try_for_each(|event| screen.entry(&entry(event)));
    }
    let data: Vec<_> = events
        .iter()
        .map(|event| event.envelope().map(|envelope| envelope.data).unwrap_or_default())
        .collect();
    look_up_names(stack, names, data.iter().filter_map(site_of)).await?;
    let rows: Vec<_> =
        events.iter().zip(&data).map(|(event, data)| row(screen, names, event, data)).collect();
    table.page(screen, &rows)
}

fn site_of(data: &Value) -> Option<SiteId> {
    data["siteId"].as_str()?.parse().ok()
}

fn row(screen: &Screen, names: &NameCache, event: &EventRow, data: &Value) -> Vec<Cell> {
    let (symbol, tone) = match (&event.unpublished, &event.refused) {
        (None, None) => ("●", Tone::Strong),
        _ => ("○", Tone::Warn),
    };
    let site = match site_of(data) {
        Some(site) => names.get(&site).cloned().flatten().unwrap_or_else(|| screen.id(&site)),
        None => "-".to_owned(),
    };
    let summary = summary::summarize_event(&event.kind, data);
    let what = if summary.is_empty() { event.entity.clone() } else { summary };
    vec![
        (symbol.to_owned(), tone),
        (event.occurred_at.to_string(), Tone::Faint),
        (event.kind.clone(), tone),
        plain(event.sequence.to_string()),
        plain(site),
        plain(what),
    ]
}

/// Returns the entry for `--json`: the event as subscribers receive it, its time of publication, and the reason if it
/// was refused.
fn entry(event: &EventRow) -> Value {
    let mut detail = serde_json::from_str(&event.detail).unwrap_or_default();
    mask_secrets(&mut detail);
    json!({
        "detail-type": event.kind, "source": event.source, "detail": detail,
        "publishedAt": event.published_at, "refused": event.refused,
    })
}
