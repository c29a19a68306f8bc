//! The command `fieldctl failures`.

mod replay;

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand, ValueEnum};
use contracts::{SiteId, Timestamp};
use ledger::{
    Concerns, Discard, ErrorInfo, FailureId, FailureRow, Ledger, PayloadFile, ReplayState, Status,
    Summary, files::Content,
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::{
    advice::{Advice, advice},
    decode::decode,
    error::{CliError, Exit},
    names::{Names, is_claim},
    output::{Screen, Tone},
    render::{Table, age, ago, mask, plain, sentence, short},
    stack::Stack,
    trace::of_status,
    walk::{Filter, STATUSES, Walk, kind},
};

/// Commands for failures.
#[derive(Debug, Subcommand)]
pub enum Failures {
    /// Lists failures, the newest first.
    List {
        /// The selected failures.
        #[command(flatten)]
        filter: Filter,
        /// Only failures with this status.
        #[arg(long, default_value = "open", ignore_case = true)]
        status: StatusName,
    },
    /// Shows failures grouped by cause and sender, with advice for each group.
    Groups {
        /// The selected failures.
        #[command(flatten)]
        filter: Filter,
        /// Only failures with this status.
        #[arg(long, default_value = "open", ignore_case = true)]
        status: StatusName,
    },
    /// Shows a failure with its decoded payload and advice.
    Show {
        /// The failure's id, or the first digits of it.
        id: String,
        /// Show the original payload: not decoded, with task tokens and payment methods.
        #[arg(long)]
        raw: bool,
    },
    /// Sends failed work again to where it failed. Without --yes it only shows what it would do.
    Replay(Box<replay::Options>),
    /// Marks failures as discarded. Without --yes it only shows what it would do.
    Discard {
        /// The selected failures.
        #[command(flatten)]
        which: Which,
        /// The reason.
        #[arg(long)]
        note: String,
        /// Discard the failures.
        #[arg(long)]
        yes: bool,
    },
}

/// The selection of open failures.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// The ids of failures, or the first digits of them.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// The filters that the failures must match.
    #[command(flatten)]
    filter: Filter,
    /// All open failures.
    #[arg(long)]
    all: bool,
}

/// The status of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusName {
    /// The failure needs attention.
    Open,
    /// A replay succeeded, or the work was done in another way.
    Replayed,
    /// An operator discarded it.
    Discarded,
    /// Any status.
    Any,
}

impl StatusName {
    fn statuses(self) -> &'static [Status] {
        match self {
            Self::Open => &[Status::Open],
            Self::Replayed => &[Status::Replayed],
            Self::Discarded => &[Status::Discarded],
            Self::Any => &STATUSES,
        }
    }
}

impl Failures {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { filter, status } => list(stack, screen, filter, status.statuses()).await,
            Self::Groups { filter, status } => {
                groups(stack, screen, filter, status.statuses()).await
            }
            Self::Show { id, raw } => show(stack, screen, &id, raw).await,
            Self::Replay(options) => Box::pin(replay::run(stack, screen, *options)).await,
            Self::Discard { which, note, yes } => discard(stack, screen, which, &note, yes).await,
        }
    }
}

/// Reports that no failure was found, and which failures were searched. A name that does not exist is an error.
async fn none(
    stack: &Stack,
    screen: &mut Screen,
    filter: &Filter,
    statuses: &[Status],
) -> Result<Exit, CliError> {
    filter.check(stack).await?;
    if !screen.json {
        screen.line(&format!("No {}.", filter.describe(statuses)))?;
    }
    Ok(Exit::Done)
}

async fn list(
    stack: &Stack,
    screen: &mut Screen,
    mut filter: Filter,
    statuses: &[Status],
) -> Result<Exit, CliError> {
    filter.resolve(stack).await?;
    let mut walk = Walk::new(stack.ledger(), statuses, filter.clone());
    let (mut table, mut names, mut count) = (table(), Names::new(stack), 0);
    while let Some(page) = walk.next().await? {
        count += page.len();
        if screen.json {
            page.iter().try_for_each(|row| screen.entry(row))?;
        } else {
            print(screen, &mut table, &mut names, &page).await?;
        }
    }
    if count == 0 {
        return none(stack, screen, &filter, statuses).await;
    }
    if !screen.json {
        screen.line(&counted(count))?;
    }
    Ok(Exit::Done)
}

fn counted(count: usize) -> String {
    match count {
        0 => "No failure".to_owned(),
        1 => "1 failure".to_owned(),
        count => format!("{count} failures"),
    }
}

fn table() -> Table {
    Table::new(["ID", "SITE", "SOURCE", "KIND", "TRIES", "LAST", "STATUS", "ERROR"])
}

async fn print(
    screen: &mut Screen,
    table: &mut Table,
    names: &mut Names<'_>,
    page: &[Summary],
) -> Result<(), CliError> {
    let mut rows = Vec::with_capacity(page.len());
    for row in page {
        let tone = if row.status == Status::Open { Tone::Bad } else { Tone::Plain };
        rows.push(vec![
            plain(short(&row.id)),
            plain(names.whom(&row.source, &row.concerns).await),
            plain(row.source.clone()),
            plain(kind(row.kind)),
            plain(row.attempts.to_string()),
            (age(screen.now, row.last_at), Tone::Faint),
            (row.status.name().to_owned(), of_status(row.status.name())),
            (format!("{}: {}", row.error.name, sentence(&row.error.message)), tone),
        ]);
    }
    table.page(screen, &rows)
}

/// The failures of one cause. For quarantined readings: those of one cause, site, sensor and sender.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(rename = "group")]
    name: String,
    fingerprint: String,
    count: usize,
    source: String,
    error: ErrorInfo,
    first_at: Timestamp,
    last_at: Timestamp,
    /// The id of the newest failure.
    id: FailureId,
    /// The site, sensor and sender of the newest failure.
    #[serde(flatten)]
    concerns: Concerns,
    /// The sites of all failures.
    #[serde(serialize_with = "length")]
    sites: BTreeSet<SiteId>,
    advice: Advice,
}

fn length<S: Serializer>(sites: &BTreeSet<SiteId>, serializer: S) -> Result<S::Ok, S::Error> {
    sites.len().serialize(serializer)
}

impl Group {
    fn new(row: Summary, name: String) -> Self {
        Self {
            advice: advice(&row, &format!("--group {name}")),
            name,
            fingerprint: row.fingerprint,
            count: 0,
            source: row.source,
            error: row.error,
            first_at: row.first_at,
            last_at: row.last_at,
            id: row.id,
            concerns: row.concerns,
            sites: BTreeSet::new(),
        }
    }
}

async fn groups(
    stack: &Stack,
    screen: &mut Screen,
    mut filter: Filter,
    statuses: &[Status],
) -> Result<Exit, CliError> {
    filter.resolve(stack).await?;
    let mut walk = Walk::new(stack.ledger(), statuses, filter.clone());
    let mut groups = BTreeMap::<String, Group>::new();
    while let Some(page) = walk.next().await? {
        for row in page {
            let (first, last, site) = (row.first_at, row.last_at, row.concerns.site_id);
            let id = row.group();
            let group = groups.entry(id.clone()).or_insert_with(|| Group::new(row, id));
            group.count += 1;
            group.first_at = group.first_at.min(first);
            group.last_at = group.last_at.max(last);
            group.sites.extend(site);
        }
    }
    if groups.is_empty() {
        return none(stack, screen, &filter, statuses).await;
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.count, group.last_at)));
    if screen.json {
        groups.iter().try_for_each(|group| screen.entry(group))?;
        return Ok(Exit::Done);
    }
    let (now, mut names, mut rows) = (screen.now, Names::new(stack), Vec::new());
    for group in &groups {
        let whom = match group.sites.len() {
            0 | 1 => names.whom(&group.source, &group.concerns).await,
            sites => format!("{sites} sites"),
        };
        rows.push(vec![
            (group.name.clone(), Tone::Strong),
            plain(group.count.to_string()),
            plain(whom),
            plain(group.source.clone()),
            (group.error.name.clone(), Tone::Bad),
            (age(now, group.first_at), Tone::Faint),
            (age(now, group.last_at), Tone::Faint),
            plain(short(&group.id)),
            plain(sentence(&group.error.message)),
        ]);
    }
    let titles =
        ["GROUP", "COUNT", "SITE", "SOURCE", "ERROR", "FIRST", "LAST", "NEWEST", "MESSAGE"];
    Table::new(titles).page(screen, &rows)?;
    screen.line(&counted(groups.iter().map(|group| group.count).sum()))?;
    for group in &groups {
        screen.line("")?;
        screen.field("group", Tone::Strong, &group.name)?;
        show_advice(screen, &group.advice)?;
    }
    Ok(Exit::Done)
}

fn show_advice(screen: &mut Screen, advice: &Advice) -> Result<(), CliError> {
    screen.field("means", Tone::Plain, advice.means)?;
    screen.field("do", Tone::Plain, advice.todo)?;
    screen.field("command", Tone::Strong, &advice.command)
}

/// Finds the failure with that id, or the only one whose id starts with it.
async fn find(ledger: &Ledger, id: &str) -> Result<FailureId, CliError> {
    let id = id.to_lowercase();
    if let Ok(id) = id.parse() {
        return Ok(id);
    }
    if id.len() < 4 || !id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(CliError::usage(format!("{id:?} is no failure's id"))
            .advise("give a UUID or its first digits, as `fieldctl failures list` shows them"));
    }
    let mut found = None;
    let mut walk = Walk::new(ledger.clone(), &STATUSES, Filter::default());
    while let Some(page) = walk.next().await? {
        for row in page.iter().filter(|row| row.id.to_string().starts_with(&id)) {
            if found.is_some_and(|found| found != row.id) {
                return Err(CliError::usage(format!("more than one failure begins with {id}"))
                    .advise("give more digits, as --json shows them"));
            }
            found = Some(row.id);
        }
    }
    found.ok_or_else(|| unknown(&id))
}

fn unknown(id: &impl ToString) -> CliError {
    CliError::not_found(format!("there is no failure {}", id.to_string()))
        .advise("`fieldctl failures list --status any` lists them")
}

/// Returns what a replay sends, from the row or from its file.
async fn payload(stack: &Stack, row: &FailureRow) -> Result<String, CliError> {
    let file: &PayloadFile = match (&row.payload, &row.payload_file) {
        (Some(payload), _) => return Ok(payload.clone()),
        (None, Some(file)) => file,
        (None, None) => {
            return Err(CliError::not_found(format!("failure {} has no payload", row.id)));
        }
    };
    match stack.files().get(file).await? {
        Content::Bytes(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Content::Unreadable(problem) => Err(CliError::not_found(format!(
            "file {} of bucket {} {problem}",
            file.key, file.bucket
        ))),
    }
}

async fn show(stack: &Stack, screen: &mut Screen, id: &str, raw: bool) -> Result<Exit, CliError> {
    let ledger = stack.ledger();
    let id = find(&ledger, id).await?;
    let mut row = ledger.get(id).await?.ok_or_else(|| unknown(&id))?;
    let text = payload(stack, &row).await?;
    let mut payload = serde_json::from_str(&text).unwrap_or(Value::String(text));
    let mut decoded = Vec::new();
    if !raw {
        decoded = decode(&mut payload);
        mask(&mut payload);
    }
    let summary = Summary::from(row.clone());
    let advice = advice(&summary, &row.id.to_string());
    let concerns = summary.concerns.clone();
    // In the table they are part of the error. Here they are shown separately.
    row.error.concerns = None;
    if screen.json {
        let mut document = json!(row);
        for (name, value) in json!(concerns).as_object().into_iter().flatten() {
            document[name] = value.clone();
        }
        document["group"] = json!(summary.group());
        document["payload"] = payload;
        document["decoded"] = json!(decoded);
        document["advice"] = json!(advice);
        screen.document(&document)?;
        return Ok(Exit::Done);
    }
    let times = |count: u32, at: Timestamp| format!("{count}, the last {}", ago(screen.now, at));
    let attempts = times(row.attempts, row.last_at);
    screen.field("failure", Tone::Strong, &row.id.to_string())?;
    screen.field("status", of_status(row.status.name()), row.status.name())?;
    screen.field("source", Tone::Plain, &row.source)?;
    screen.field("kind", Tone::Plain, &kind(row.kind))?;
    screen.field("error", Tone::Bad, &row.error.name)?;
    screen.field("message", Tone::Plain, &sentence(&row.error.message))?;
    show_concerns(stack, screen, &row.source, &concerns).await?;
    screen.field("attempts", Tone::Plain, &attempts)?;
    screen.field("first", Tone::Plain, &row.first_at.to_string())?;
    screen.field("last", Tone::Plain, &row.last_at.to_string())?;
    screen.field("group", Tone::Plain, &summary.group())?;
    let optional = [
        ("onboardingId", row.correlation_id.map(|id| id.to_string())),
        ("execution", row.execution.clone()),
        ("note", row.note.clone()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            screen.field(name, Tone::Plain, &value)?;
        }
    }
    if let Some(replay) = &row.replay {
        let by = replay.by.as_deref().unwrap_or("unknown");
        let at = ago(screen.now, replay.at);
        let (tone, told) = match replay.state {
            ReplayState::Ended => (Tone::Plain, ""),
            ReplayState::Sending => (Tone::Warn, ", which has not told its end: in doubt"),
        };
        let text = format!("{}, the last {at} by {by}{told}", row.replays);
        screen.field("replays", tone, &text)?;
    }
    if row.status == Status::Open {
        show_advice(screen, &advice)?;
    }
    screen.line("")?;
    for part in decoded {
        screen.field("decoded", Tone::Faint, &part)?;
    }
    screen.document(&payload)?;
    Ok(Exit::Done)
}

/// Prints the site, the sensor and the sender.
async fn show_concerns(
    stack: &Stack,
    screen: &mut Screen,
    source: &str,
    concerns: &Concerns,
) -> Result<(), CliError> {
    let mut names = Names::new(stack);
    let claim = is_claim(source, concerns);
    if let Some(site) = concerns.site_id {
        let name = names.of(site).await;
        let text = if claim { format!("{name}, as the sender claims") } else { name };
        screen.field("site", Tone::Strong, &text)?;
        screen.field("siteId", Tone::Plain, &site.to_string())?;
    }
    if let Some(sender) = &concerns.sender {
        screen.field("sender", Tone::Strong, &format!("partition key {sender}"))?;
    }
    if let Some(sensor) = concerns.sensor_id {
        let at = match concerns.sensor_site_id {
            Some(site) => format!("registered at {} ({site})", names.of(site).await),
            None => "not in the register".to_owned(),
        };
        screen.field("sensorId", Tone::Plain, &format!("{sensor}, {at}"))?;
    }
    Ok(())
}

/// Returns the ids that were given on the command line, or none if the failures were chosen by a filter.
async fn chosen(ledger: &Ledger, which: &Which) -> Result<Vec<FailureId>, CliError> {
    let filtered = which.all || !which.filter.is_empty();
    match (which.ids.is_empty(), filtered) {
        (true, false) => Err(CliError::usage("which failures?").advise(
            "give ids, or --group, --site, --source, --kind, --since, --correlation, or --all",
        )),
        (false, true) => Err(CliError::usage("give either ids or filters")),
        _ => {
            let mut ids = Vec::new();
            for id in &which.ids {
                let id = find(ledger, id).await?;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            Ok(ids)
        }
    }
}

/// The chosen open failures, read page by page.
#[derive(Debug)]
enum Chosen {
    Ids { ledger: Ledger, left: Vec<FailureId> },
    Filtered(Walk),
}

impl Chosen {
    async fn new(ledger: Ledger, which: &Which) -> Result<Self, CliError> {
        let left = chosen(&ledger, which).await?;
        Ok(if left.is_empty() {
            Self::Filtered(Walk::new(ledger, &[Status::Open], which.filter.clone()))
        } else {
            Self::Ids { ledger, left }
        })
    }

    async fn next(&mut self) -> Result<Option<Vec<Summary>>, CliError> {
        match self {
            Self::Filtered(walk) => walk.next().await,
            Self::Ids { left, .. } if left.is_empty() => Ok(None),
            Self::Ids { ledger, left } => {
                let mut rows = Vec::new();
                for id in left.drain(..) {
                    let row = ledger.get(id).await?.ok_or_else(|| unknown(&id))?;
                    rows.push(row.into());
                }
                Ok(Some(rows))
            }
        }
    }

    async fn count(mut self) -> Result<usize, CliError> {
        let mut count = 0;
        while let Some(page) = self.next().await? {
            count += page.len();
        }
        Ok(count)
    }
}

async fn discard(
    stack: &Stack,
    screen: &mut Screen,
    mut which: Which,
    note: &str,
    yes: bool,
) -> Result<Exit, CliError> {
    let ledger = stack.ledger();
    which.filter.resolve(stack).await?;
    let mut chosen = Chosen::new(ledger.clone(), &which).await?;
    if !yes {
        let (mut table, mut names, mut count) = (table(), Names::new(stack), 0);
        while let Some(page) = chosen.next().await? {
            count += page.len();
            if screen.json {
                page.iter().try_for_each(|row| screen.entry(row))?;
            } else {
                print(screen, &mut table, &mut names, &page).await?;
            }
        }
        if count == 0 {
            return none(stack, screen, &which.filter, &[Status::Open]).await;
        }
        if !screen.json {
            let count = counted(count);
            screen.line(&format!("{count} would be discarded; --yes does it."))?;
        }
        return Ok(Exit::Done);
    }
    let (mut discarded, mut skipped) = (0, BTreeMap::<&str, u32>::new());
    while let Some(page) = chosen.next().await? {
        for row in page {
            match ledger.discard(row.id, note).await? {
                Discard::Discarded => discarded += 1,
                Discard::NotOpen(status) => *skipped.entry(status.name()).or_default() += 1,
                Discard::Unknown => *skipped.entry("gone").or_default() += 1,
            }
        }
    }
    if discarded == 0 && skipped.is_empty() {
        which.filter.check(stack).await?;
    }
    if screen.json {
        screen.document(&json!({ "discarded": discarded, "skipped": skipped }))?;
    } else {
        screen.line(&format!("{discarded} discarded{}", skips(&skipped)))?;
    }
    Ok(Exit::Done)
}

/// Returns `, 3 skipped: 2 x, 1 y`, or an empty text.
fn skips<K: AsRef<str>>(skipped: &BTreeMap<K, u32>) -> String {
    let all: u32 = skipped.values().sum();
    if all == 0 {
        return String::new();
    }
    let each: Vec<_> =
        skipped.iter().map(|(why, count)| format!("{count} {}", why.as_ref())).collect();
    format!(", {all} skipped ({})", each.join("; "))
}
