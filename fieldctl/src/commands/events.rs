//! The command `fieldctl events`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use clap::{Args, Subcommand};
use contracts::{
    EntityType, Event, OnboardingId, OperatorId, SiteId, Timestamp,
    events::SiteChanged,
    open::{OpenEntity, foreign_correlation_key},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use store::EventRow;
use tokio::time::Instant;

use crate::{
    error::{CliError, Exit},
    event_log::{Period, sort},
    event_stream::{EventStream, READ_INTERVAL, Start, StreamedEvent},
    failure_pager::did_you_mean,
    output::{Screen, Tone, print_notice},
    render::{Cell, Table, mask_secrets, parse_time, plain},
    resolve,
    stack::Stack,
    summary,
};

/// The maximum number of concurrent lookups of sites.
const MAX_CONCURRENT_LOOKUPS: usize = 8;
/// The period in which events of a type are listed if there is no `--from`: seven days.
const DEFAULT_PERIOD_MILLIS: i64 = 7 * 86_400_000;

/// Commands for the event log.
#[derive(Debug, Subcommand)]
pub enum Events {
    /// Lists the last events in chronological order, up to --limit.
    List {
        /// The selected events.
        #[command(flatten)]
        selection: EventSelection,
        /// The operator whose events are listed: its id, the first digits of it, or its name. The default is the
        /// default operator. Events of Fieldstation's own entities and of an onboarding are found with any operator.
        #[arg(long)]
        operator: Option<String>,
        /// Only events since this time: RFC 3339, or an age such as 2h. The default is seven days before --to for
        /// --type, and the first event otherwise.
        #[arg(long, value_parser = parse_time)]
        from: Option<Timestamp>,
        /// Only events before this time.
        #[arg(long, value_parser = parse_time)]
        to: Option<Timestamp>,
        /// The maximum number of events.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Prints events of all operators as they are published, until Ctrl-C.
    Tail {
        /// Only events of this type.
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
        /// Only events of this operator: its id, the first digits of it, or its name.
        #[arg(long)]
        operator: Option<String>,
        /// Stop after this number of seconds.
        #[arg(long)]
        seconds: Option<u64>,
    },
}

/// The selection of events.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct EventSelection {
    /// Only events of this entity: site/ID, reservation/ID, ..., or one of another system, such as acme.instrument/7.
    #[arg(long, value_name = "TYPE/ID")]
    entity: Option<String>,
    /// Only events of this type, such as SiteActivated. It may be a type of another system.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only events with this correlation id: an onboarding's id, or any text that another system has chosen.
    #[arg(long, value_name = "ID")]
    correlation: Option<String>,
}

/// The events to list, as the log has them.
#[derive(Debug)]
enum Selected {
    /// The events of an entity, by its key in the log, and whether it is one of Fieldstation's.
    Entity(String, bool),
    /// An operator's events of a type.
    Type(OperatorId, String),
    /// The events with one of these keys of the index `byCorrelation`.
    Correlation(Vec<String>),
}

impl Events {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { selection, operator, from, to, limit } => {
                let selected = selection.resolve(stack, operator.as_deref()).await?;
                let mut period = Period { from, to };
                if matches!(selected, Selected::Type(..)) {
                    let end = to.unwrap_or(screen.now);
                    period.from = from.or(Some(end.plus_millis(-DEFAULT_PERIOD_MILLIS)));
                }
                let events = list(stack, &selected, period, limit).await?;
                if events.is_empty() {
                    let what = selection.describe(&selected, operator.as_deref());
                    report_none(stack, screen, &selected, &format!("{what}{period}")).await?;
                }
                let events: Vec<_> = events.iter().map(ShownEvent::from_row).collect();
                print(stack, screen, &mut table(), &mut NameCache::new(), &events).await?;
            }
            Self::Tail { kind, operator, seconds } => {
                let operator = match operator {
                    Some(operator) => Some(resolve::operator(stack, &operator).await?),
                    None => None,
                };
                if let Some(suggestion) = kind.as_deref().and_then(suggestion) {
                    print_notice(&format!(
                        "Fieldstation has no event type {:?}: {suggestion}",
                        kind.as_deref().unwrap_or_default()
                    ));
                }
                let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
                let accepts = |it: &StreamedEvent| {
                    let metadata = &it.envelope.metadata;
                    kind.as_ref().is_none_or(|kind| kind.eq_ignore_ascii_case(&metadata.kind))
                        && operator.is_none_or(|operator| operator == metadata.operator_id)
                };
                tail(stack, screen, accepts, end).await?;
            }
        }
        Ok(Exit::Done)
    }
}

impl EventSelection {
    /// Finds the events to list. `operator` is the option of the command line.
    async fn resolve(&self, stack: &Stack, operator: Option<&str>) -> Result<Selected, CliError> {
        let operator = match operator {
            Some(operator) => resolve::operator(stack, operator).await?,
            None => OperatorId::DEFAULT,
        };
        if let Some(kind) = &self.kind {
            let own = event_types().into_iter().find(|name| name.eq_ignore_ascii_case(kind));
            return Ok(Selected::Type(operator, own.map_or_else(|| kind.clone(), str::to_owned)));
        }
        if let Some(id) = &self.correlation {
            // An id of another system may also look like that of an onboarding.
            let onboarding = id.trim().parse::<OnboardingId>().ok().map(|id| id.to_string());
            let foreign = foreign_correlation_key(operator, id);
            return Ok(Selected::Correlation(onboarding.into_iter().chain([foreign]).collect()));
        }
        let entity = self.entity.as_deref().unwrap_or_default();
        let parsed =
            OpenEntity::parse(&entity.replacen('#', "/", usize::from(!entity.contains('/'))));
        let Some(entity) = parsed else {
            return Err(CliError::usage(format!("{entity:?} is not an entity"))
                .advise("use TYPE/ID, such as site/55115657-a433-553f-959b-29ae8465145d"));
        };
        if entity.is_own() && !EntityType::NAMES.contains(&entity.kind.as_str()) {
            let suggestion = did_you_mean(&entity.kind, &EntityType::NAMES);
            let message = format!("Fieldstation has no entity type {:?}", entity.kind);
            return Err(CliError::usage(message).advise(format!(
                "{suggestion}the entity types are {}; those of other systems have a dot",
                EntityType::NAMES.join(", ")
            )));
        }
        Ok(Selected::Entity(entity.log_key(operator), entity.is_own()))
    }

    /// Describes which events were listed, such as `of type SiteActivated of the default operator`.
    fn describe(&self, selected: &Selected, operator: Option<&str>) -> String {
        let operator = match operator {
            Some(operator) => format!("operator {operator}"),
            None => "the default operator".to_owned(),
        };
        match (self, selected) {
            (Self { entity: Some(entity), .. }, Selected::Entity(_, true)) => {
                format!("of {entity}")
            }
            (Self { entity: Some(entity), .. }, _) => format!("of {entity} of {operator}"),
            (_, Selected::Type(_, kind)) => format!("of type {kind} of {operator}"),
            (Self { correlation, .. }, _) => {
                let id = correlation.as_deref().unwrap_or_default();
                format!("with the correlation id {id} of {operator}")
            }
        }
    }
}

/// Reports that no events were found. An entity or a correlation id without events in any period is an error.
async fn report_none(
    stack: &Stack,
    screen: &mut Screen,
    selected: &Selected,
    what: &str,
) -> Result<(), CliError> {
    let advice = match selected {
        Selected::Type(_, kind) => {
            let suggestion = suggestion(kind).unwrap_or_default();
            if screen.json && !suggestion.is_empty() {
                print_notice(&format!("no events of type {kind}: {suggestion}"));
            }
            suggestion
        }
        Selected::Entity(..) | Selected::Correlation(_) => {
            if list(stack, selected, Period::default(), 1).await?.is_empty() {
                let error = CliError::not_found(format!("there are no events {what}"));
                return Err(error.advise(
                    "`fieldctl trace <site>` shows the site's events with their entities; \
                     --operator selects the operator of another system's entity or correlation id",
                ));
            }
            String::new()
        }
    };
    if screen.json {
        return Ok(());
    }
    match advice.as_str() {
        "" => screen.line(&format!("No events {what}.")),
        advice => screen.line(&format!("No events {what}; {advice}")),
    }
}

/// Returns the names of all types of Fieldstation's events.
fn event_types() -> BTreeSet<&'static str> {
    contracts::events::schemas().into_iter().map(|(name, _, _)| name).collect()
}

/// Returns the name that was probably meant, if the type is not one of Fieldstation's. Other systems have other types.
fn suggestion(kind: &str) -> Option<String> {
    let types: Vec<_> = event_types().into_iter().collect();
    let is_known = types.iter().any(|name| name.eq_ignore_ascii_case(kind));
    let suggestion = did_you_mean(kind, &types);
    (!is_known && !suggestion.is_empty()).then(|| suggestion.trim().to_owned())
}

async fn list(
    stack: &Stack,
    selected: &Selected,
    period: Period,
    limit: usize,
) -> Result<Vec<EventRow>, CliError> {
    match selected {
        Selected::Type(operator, kind) => {
            let from = period.from.unwrap_or_else(|| Timestamp::from_millis(0));
            let is_own = event_types().contains(kind.as_str());
            stack.events_of_type(*operator, kind, is_own, (from, period.to), limit).await
        }
        Selected::Entity(key, _) => stack.events_of_entity(key, period, limit).await,
        Selected::Correlation(keys) => {
            let mut rows = Vec::new();
            for key in keys {
                rows.extend(stack.events_of_correlation(key, period, limit).await?);
            }
            sort(&mut rows);
            Ok(rows.split_off(rows.len().saturating_sub(limit)))
        }
    }
}

/// Prints new events that `accepts` selects until `end` or Ctrl-C.
async fn tail(
    stack: &Stack,
    screen: &mut Screen,
    accepts: impl Fn(&StreamedEvent) -> bool,
    end: Option<Instant>,
) -> Result<(), CliError> {
    let (mut table, mut names) = (table(), NameCache::new());
    let mut interrupted = Box::pin(tokio::signal::ctrl_c());
    let mut stream = EventStream::open(stack, Start::Latest).await?;
    loop {
        let events = stream.read().await?;
        let new: Vec<_> =
            events.into_iter().filter(&accepts).map(ShownEvent::from_stream).collect();
        print(stack, screen, &mut table, &mut names, &new).await?;
        screen.flush()?;
        if end.is_some_and(|end| Instant::now() + READ_INTERVAL > end) {
            return Ok(());
        }
        tokio::select! {
            _ = &mut interrupted => return Ok(()),
            () = tokio::time::sleep(READ_INTERVAL) => {}
        }
    }
}

/// An event of the log or of the stream, as it is printed.
struct ShownEvent {
    kind: String,
    source: String,
    occurred_at: Timestamp,
    sequence: u64,
    /// The key in the log, or `type/id` for an entity of another system.
    entity: String,
    /// Whether another system appended it.
    is_foreign: bool,
    /// Whether it is published.
    is_published: bool,
    published_at: Option<Timestamp>,
    refused: Option<String>,
    detail: Value,
}

impl ShownEvent {
    fn from_row(row: &EventRow) -> Self {
        let entity = row.envelope().ok().map(|envelope| envelope.metadata.entity);
        let foreign = entity.filter(|entity| !entity.is_own());
        Self {
            kind: row.kind.clone(),
            source: row.source.clone(),
            occurred_at: row.occurred_at,
            sequence: row.sequence,
            is_foreign: foreign.is_some(),
            entity: foreign.map_or_else(|| row.entity.clone(), |entity| entity.to_string()),
            is_published: row.unpublished.is_none() && row.refused.is_none(),
            published_at: row.published_at,
            refused: row.refused.clone(),
            detail: serde_json::from_str(&row.detail).unwrap_or_default(),
        }
    }

    /// Converts an event of the stream. It was published at the time at which the stream got it.
    fn from_stream(event: StreamedEvent) -> Self {
        let metadata = event.envelope.metadata;
        let is_foreign = !metadata.entity.is_own();
        let log_key = metadata.log_key();
        let cloud_source = metadata.cloud_event.as_ref().and_then(|it| it.get("source")?.as_str());
        let own_source = metadata.entity.own_type().map(EntityType::source);
        Self {
            source: cloud_source.or(own_source).unwrap_or_default().to_owned(),
            kind: metadata.kind,
            occurred_at: metadata.occurred_at,
            sequence: metadata.sequence,
            entity: if is_foreign { metadata.entity.to_string() } else { log_key },
            is_foreign,
            is_published: true,
            published_at: event.arrived,
            refused: None,
            detail: event.detail,
        }
    }

    /// Returns the site of one of Fieldstation's own events. The `siteId` of another system's event may mean something
    /// else.
    fn site(&self) -> Option<SiteId> {
        let site = self.detail["data"]["siteId"].as_str()?.parse().ok();
        site.filter(|_| !self.is_foreign)
    }

    /// Returns the entry for `--json`: the event as subscribers receive it, its time of publication, and the reason if
    /// it was refused.
    fn entry(&self) -> Value {
        let mut detail = self.detail.clone();
        mask_secrets(&mut detail);
        json!({
            "detail-type": self.kind, "source": self.source, "detail": detail,
            "publishedAt": self.published_at, "refused": self.refused,
        })
    }
}

/// The names of sites, each looked up once, and again after a change. `None` for a site without a name in the log.
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
    events: &[ShownEvent],
) -> Result<(), CliError> {
    if screen.json {
        return events.iter().try_for_each(|event| screen.entry(&event.entry()));
    }
    for event in events.iter().filter(|event| event.kind == SiteChanged::TYPE) {
        names.retain(|site, _| event.site() != Some(*site));
    }
    look_up_names(stack, names, events.iter().filter_map(ShownEvent::site)).await?;
    let rows: Vec<_> = events.iter().map(|event| row(screen, names, event)).collect();
    table.page(screen, &rows)
}

fn row(screen: &Screen, names: &NameCache, event: &ShownEvent) -> Vec<Cell> {
    let (symbol, tone) =
        if event.is_published { ("●", Tone::Strong) } else { ("○", Tone::Warn) };
    let about = match event.site() {
        Some(site) => names.get(&site).cloned().flatten().unwrap_or_else(|| screen.id(&site)),
        None if event.is_foreign => event.entity.clone(),
        None => "-".to_owned(),
    };
    let summary = summary::summarize_event(&event.kind, &event.detail["data"]);
    let what = if summary.is_empty() && !event.is_foreign { event.entity.clone() } else { summary };
    vec![
        (symbol.to_owned(), tone),
        (event.occurred_at.to_string(), Tone::Faint),
        (event.kind.clone(), tone),
        plain(event.sequence.to_string()),
        plain(about),
        plain(what),
    ]
}
