//! `fieldctl failures`.

mod replay;

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use contracts::Timestamp;
use failures::{
    FailureId, FailureRow, PayloadFile, ReplayState, Status,
    files::Content,
    ledger::{Discard, Ledger, Summary},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    error::{CliError, Exit},
    output::{Screen, Tone},
    render::{Cell, Table, age, ago, mask, plain, sentence, short},
    stack::Stack,
    trace::of_status,
    walk::{Filter, STATUSES, Walk, kind},
};

/// Commands for failures.
#[derive(Debug, Subcommand)]
pub enum Failures {
    /// Lists failures, the newest first.
    List {
        /// Which.
        #[command(flatten)]
        filter: Filter,
        /// In which status.
        #[arg(long, default_value = "open", ignore_case = true)]
        status: StatusName,
    },
    /// Shows failures by what caused them: those of a source whose errors say the same.
    Groups {
        /// Which.
        #[command(flatten)]
        filter: Filter,
        /// In which status.
        #[arg(long, default_value = "open", ignore_case = true)]
        status: StatusName,
    },
    /// Shows a failure with its payload.
    Show {
        /// Its id, or the first digits of it.
        id: String,
        /// With task tokens and payment methods as they are.
        #[arg(long)]
        raw: bool,
    },
    /// Sends failed work back to where it came from. Without --yes it only tells what it would do.
    Replay(Box<replay::Options>),
    /// Takes failures off the list. Without --yes it only tells what it would do.
    Discard {
        /// Which.
        #[command(flatten)]
        which: Which,
        /// Why.
        #[arg(long)]
        note: String,
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
}

/// Which open failures.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// Their ids, or the first digits of them.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// Those that pass these.
    #[command(flatten)]
    filter: Filter,
    /// All that are open.
    #[arg(long)]
    all: bool,
}

/// What is to be done about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatusName {
    /// Somebody has to see to it.
    Open,
    /// A replay went well.
    Replayed,
    /// It needs none.
    Discarded,
    /// All of them.
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
    /// Carries it out.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        match self {
            Self::List { filter, status } => {
                list(screen, Walk::new(stack.ledger()?, status.statuses(), filter)).await
            }
            Self::Groups { filter, status } => {
                groups(screen, Walk::new(stack.ledger()?, status.statuses(), filter)).await
            }
            Self::Show { id, raw } => show(stack, screen, &id, raw).await,
            Self::Replay(options) => replay::run(stack, screen, *options).await,
            Self::Discard { which, note, yes } => discard(stack, screen, which, &note, yes).await,
        }
    }
}

async fn list(screen: &mut Screen, mut walk: Walk) -> Result<Exit, CliError> {
    let mut table = table();
    let mut count = 0;
    while let Some(page) = walk.next().await? {
        count += page.len();
        if screen.json {
            page.iter().try_for_each(|row| screen.entry(row))?;
        } else {
            let rows: Vec<_> = page.iter().map(|row| summary(row, screen.now)).collect();
            table.page(screen, &rows)?;
        }
    }
    if !screen.json {
        screen.line(&counted(count, "There are no such failures."))?;
    }
    Ok(Exit::Done)
}

fn counted(count: usize, none: &str) -> String {
    match count {
        0 => none.to_owned(),
        1 => "1 failure".to_owned(),
        count => format!("{count} failures"),
    }
}

fn table() -> Table {
    Table::new(["ID", "SOURCE", "KIND", "TRIES", "LAST", "STATUS", "ERROR"])
}

fn summary(row: &Summary, now: Timestamp) -> Vec<Cell> {
    let tone = if row.status == Status::Open { Tone::Bad } else { Tone::Plain };
    vec![
        plain(short(&row.id)),
        plain(row.source.clone()),
        plain(kind(row.kind)),
        plain(row.attempts.to_string()),
        (age(now, row.last_at), Tone::Faint),
        (row.status.name().to_owned(), of_status(row.status.name())),
        (format!("{}: {}", row.error.name, sentence(&row.error.message)), tone),
    ]
}

/// Failures of one cause.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    fingerprint: String,
    count: usize,
    source: String,
    error: String,
    message: String,
    first_at: Timestamp,
    last_at: Timestamp,
    /// Of the newest.
    id: FailureId,
}

async fn groups(screen: &mut Screen, mut walk: Walk) -> Result<Exit, CliError> {
    let mut groups = BTreeMap::<String, Group>::new();
    while let Some(page) = walk.next().await? {
        for row in page {
            let group = groups.entry(row.fingerprint.clone()).or_insert_with(|| Group {
                fingerprint: row.fingerprint,
                count: 0,
                source: row.source,
                error: row.error.name,
                message: row.error.message,
                first_at: row.first_at,
                last_at: row.last_at,
                id: row.id,
            });
            group.count += 1;
            group.first_at = group.first_at.min(row.first_at);
            group.last_at = group.last_at.max(row.last_at);
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.count, group.last_at)));
    if screen.json {
        groups.iter().try_for_each(|group| screen.entry(group))?;
        return Ok(Exit::Done);
    }
    let now = screen.now;
    let row = |group: &Group| {
        vec![
            (group.fingerprint.clone(), Tone::Strong),
            plain(group.count.to_string()),
            plain(group.source.clone()),
            (group.error.clone(), Tone::Bad),
            (age(now, group.first_at), Tone::Faint),
            (age(now, group.last_at), Tone::Faint),
            plain(short(&group.id)),
            plain(sentence(&group.message)),
        ]
    };
    let titles = ["GROUP", "COUNT", "SOURCE", "ERROR", "FIRST", "LAST", "NEWEST", "MESSAGE"];
    let rows: Vec<_> = groups.iter().map(row).collect();
    Table::new(titles).page(screen, &rows)?;
    let count = groups.iter().map(|group| group.count).sum();
    screen.line(&counted(count, "There are no such failures."))?;
    Ok(Exit::Done)
}

/// The failure with that id, or with the one id that begins so.
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

/// What a replay sends, from the row or from its file.
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
    let ledger = stack.ledger()?;
    let id = find(&ledger, id).await?;
    let row = ledger.get(id).await?.ok_or_else(|| unknown(&id))?;
    let text = payload(stack, &row).await?;
    let mut payload = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if !raw {
        mask(&mut payload);
    }
    if screen.json {
        let mut document = json!(row);
        document["payload"] = payload;
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
    screen.field("attempts", Tone::Plain, &attempts)?;
    screen.field("first", Tone::Plain, &row.first_at.to_string())?;
    screen.field("last", Tone::Plain, &row.last_at.to_string())?;
    screen.field("group", Tone::Plain, &row.fingerprint)?;
    let optional = [
        ("onboardingId", row.correlation_id.map(|id| id.to_string())),
        ("siteId", row.site_id.map(|id| id.to_string())),
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
    screen.line("")?;
    screen.document(&payload)?;
    Ok(Exit::Done)
}

/// What was chosen on the command line: by ids, or by a filter.
async fn chosen(ledger: &Ledger, which: &Which) -> Result<Vec<FailureId>, CliError> {
    let filtered = which.all || !which.filter.is_empty();
    match (which.ids.is_empty(), filtered) {
        (true, false) => Err(CliError::usage("which failures?")
            .advise("give ids, or --group, --source, --kind, --since, --correlation, or --all")),
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

/// The open failures that were chosen, a page at a time.
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
                    rows.push(brief(row));
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

/// A row as the index holds it.
fn brief(row: FailureRow) -> Summary {
    Summary {
        id: row.id,
        source: row.source,
        kind: row.kind,
        status: row.status,
        error: row.error,
        fingerprint: row.fingerprint,
        attempts: row.attempts,
        first_at: row.first_at,
        last_at: row.last_at,
        correlation_id: row.correlation_id,
        replays: row.replays,
    }
}

async fn discard(
    stack: &Stack,
    screen: &mut Screen,
    which: Which,
    note: &str,
    yes: bool,
) -> Result<Exit, CliError> {
    let ledger = stack.ledger()?;
    let mut chosen = Chosen::new(ledger.clone(), &which).await?;
    if !yes {
        let mut table = table();
        let mut count = 0;
        while let Some(page) = chosen.next().await? {
            count += page.len();
            if screen.json {
                page.iter().try_for_each(|row| screen.entry(row))?;
            } else {
                let rows: Vec<_> = page.iter().map(|row| summary(row, screen.now)).collect();
                table.page(screen, &rows)?;
            }
        }
        if !screen.json {
            let count = counted(count, "No failure");
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
    if screen.json {
        screen.document(&json!({ "discarded": discarded, "skipped": skipped }))?;
    } else {
        screen.line(&format!("{discarded} discarded{}", skips(&skipped)))?;
    }
    Ok(Exit::Done)
}

/// `, 3 skipped: 2 x, 1 y`, or nothing.
fn skips<K: AsRef<str>>(skipped: &BTreeMap<K, u32>) -> String {
    let all: u32 = skipped.values().sum();
    if all == 0 {
        return String::new();
    }
    let each: Vec<_> =
        skipped.iter().map(|(why, count)| format!("{count} {}", why.as_ref())).collect();
    format!(", {all} skipped ({})", each.join("; "))
}
