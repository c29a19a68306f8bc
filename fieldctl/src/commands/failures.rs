//! The command `fieldctl failures`.

mod replay;

use std::collections::{BTreeMap, BTreeSet};

use ::audit::Action;
use clap::{Args, Subcommand, ValueEnum};
use contracts::{SiteId, Timestamp};
use ledger::{
    AffectedIds, DiscardResult, ErrorInfo, FailureId, FailureRow, FailureSummary, Ledger,
    PayloadFile, ReplayState, Status, files::Content,
};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::{
    advice::{Advice, advice},
    audit::{Auditor, Owners},
    decode::decode,
    error::{CliError, Exit},
    failure_pager::{FailureFilter, FailurePager, OpenFailures, STATUSES, kind_name},
    names::{SiteNames, is_claimed},
    output::{Screen, Tone},
    render::{Table, age, ago, cause_message, counted, mask_secrets, plain, short},
    stack::Stack,
    trace::status_tone,
};

/// Commands for failures.
#[derive(Debug, Subcommand)]
pub enum Failures {
    /// Lists failures, the newest first; with --status any, one status after the other.
    List {
        /// The selected failures.
        #[command(flatten)]
        filter: FailureFilter,
        /// Only failures with this status.
        #[arg(long, default_value = "open", ignore_case = true)]
        status: StatusName,
    },
    /// Shows failures grouped by cause and sender, with advice for each group.
    Groups {
        /// The selected failures.
        #[command(flatten)]
        filter: FailureFilter,
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
    /// Sends failed work back to where it failed. Without --yes it only shows what it would do.
    Replay(Box<replay::Options>),
    /// Marks failures as discarded. Without --yes it only shows what it would do.
    Discard {
        /// The selected failures.
        #[command(flatten)]
        selection: Selection,
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
pub struct Selection {
    /// The ids of failures, or the first digits of them.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// The filters that the failures must match.
    #[command(flatten)]
    filter: FailureFilter,
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
    /// An engineer on call discarded it.
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
            Self::Discard { selection, note, yes } => {
                discard(stack, screen, selection, &note, yes).await
            }
        }
    }
}

/// Prints that no failure was found, with the search terms. Returns an error if a name in the filter does not exist.
async fn report_none(
    stack: &Stack,
    screen: &mut Screen,
    filter: &FailureFilter,
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
    mut filter: FailureFilter,
    statuses: &[Status],
) -> Result<Exit, CliError> {
    filter.resolve(stack).await?;
    let mut pager = FailurePager::new(stack.ledger(), statuses, filter.clone());
    let (mut table, mut names, mut count) = (table(), SiteNames::new(stack), 0);
    while let Some(page) = pager.next().await? {
        count += page.len();
        if screen.json {
            page.iter().try_for_each(|row| screen.entry(row))?;
        } else {
            print(screen, &mut table, &mut names, &page).await?;
        }
    }
    if count == 0 {
        return report_none(stack, screen, &filter, statuses).await;
    }
    if !screen.json {
        screen.line(&count_text(count))?;
    }
    Ok(Exit::Done)
}

fn count_text(count: usize) -> String {
    match count {
        0 => "No failure".to_owned(),
        count => counted(count, "failure", "failures"),
    }
}

/// Returns the last line of a command's preview: what the command would do with `--yes`.
fn preview_text(count: usize, action: &str) -> String {
    let count_text = count_text(count);
    match count {
        0 => format!("{count_text} would be {action}."),
        _ => format!("{count_text} would be {action}. Add --yes to do it."),
    }
}

fn table() -> Table {
    Table::new(["ID", "SITE", "SOURCE", "KIND", "TRIES", "LAST", "STATUS", "ERROR"])
}

async fn print(
    screen: &mut Screen,
    table: &mut Table,
    names: &mut SiteNames<'_>,
    page: &[FailureSummary],
) -> Result<(), CliError> {
    let mut rows = Vec::with_capacity(page.len());
    for row in page {
        let tone = if row.status == Status::Open { Tone::Bad } else { Tone::Plain };
        rows.push(vec![
            plain(short(&row.id)),
            plain(names.site_or_sender(&row.source, &row.affected_ids).await),
            plain(row.source.clone()),
            plain(kind_name(row.kind)),
            plain(row.attempts.to_string()),
            (age(screen.now, row.last_at), Tone::Faint),
            (row.status.name().to_owned(), status_tone(row.status.name())),
            (format!("{}: {}", row.error.name, cause_message(&row.error.message)), tone),
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
    /// The id of the first failure that was read: the newest of its status.
    id: FailureId,
    /// The site, sensor and sender of that failure.
    #[serde(flatten)]
    affected_ids: AffectedIds,
    /// The sites of all failures.
    #[serde(serialize_with = "length")]
    sites: BTreeSet<SiteId>,
    advice: Advice,
}

fn length<S: Serializer>(sites: &BTreeSet<SiteId>, serializer: S) -> Result<S::Ok, S::Error> {
    sites.len().serialize(serializer)
}

impl Group {
    fn new(row: FailureSummary, name: String) -> Self {
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
            affected_ids: row.affected_ids,
            sites: BTreeSet::new(),
        }
    }
}

async fn groups(
    stack: &Stack,
    screen: &mut Screen,
    mut filter: FailureFilter,
    statuses: &[Status],
) -> Result<Exit, CliError> {
    filter.resolve(stack).await?;
    let mut pager = FailurePager::new(stack.ledger(), statuses, filter.clone());
    let mut groups = BTreeMap::<String, Group>::new();
    while let Some(page) = pager.next().await? {
        for row in page {
            let (first, last, site) = (row.first_at, row.last_at, row.affected_ids.site_id);
            let id = row.group();
            let group = groups.entry(id.clone()).or_insert_with(|| Group::new(row, id));
            group.count += 1;
            group.first_at = group.first_at.min(first);
            group.last_at = group.last_at.max(last);
            group.sites.extend(site);
        }
    }
    if groups.is_empty() {
        return report_none(stack, screen, &filter, statuses).await;
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse((group.count, group.last_at)));
    if screen.json {
        groups.iter().try_for_each(|group| screen.entry(group))?;
        return Ok(Exit::Done);
    }
    let (now, mut names, mut rows) = (screen.now, SiteNames::new(stack), Vec::new());
    for group in &groups {
        let site = match group.sites.len() {
            0 | 1 => names.site_or_sender(&group.source, &group.affected_ids).await,
            sites => format!("{sites} sites"),
        };
        rows.push(vec![
            (group.name.clone(), Tone::Strong),
            plain(group.count.to_string()),
            plain(site),
            plain(group.source.clone()),
            (group.error.name.clone(), Tone::Bad),
            (age(now, group.first_at), Tone::Faint),
            (age(now, group.last_at), Tone::Faint),
            plain(short(&group.id)),
            plain(cause_message(&group.error.message)),
        ]);
    }
    let titles =
        ["GROUP", "COUNT", "SITE", "SOURCE", "ERROR", "FIRST", "LAST", "NEWEST", "MESSAGE"];
    Table::new(titles).page(screen, &rows)?;
    screen.line(&count_text(groups.iter().map(|group| group.count).sum()))?;
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
        return Err(CliError::usage(format!("{id:?} is not a failure id"))
            .advise("use the id or its first digits (at least four), as `fieldctl failures list` shows them"));
    }
    let mut found = None;
    let mut pager = FailurePager::new(ledger.clone(), &STATUSES, FailureFilter::default());
    while let Some(page) = pager.next().await? {
        for row in page.iter().filter(|row| row.id.to_string().starts_with(&id)) {
            if found.is_some_and(|found| found != row.id) {
                return Err(CliError::usage(format!("more than one failure id begins with {id}"))
                    .advise("use more digits; --json prints the whole ids"));
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

/// Returns the payload of a failure, from its row or from its file.
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
        mask_secrets(&mut payload);
    }
    let summary = FailureSummary::from(row.clone());
    let advice = advice(&summary, &row.id.to_string());
    let affected_ids = summary.affected_ids.clone();
    // In the row, the affected ids are part of the error. Here they are shown separately.
    row.error.affected_ids = None;
    if screen.json {
        let mut document = json!(row);
        for (name, value) in json!(affected_ids).as_object().into_iter().flatten() {
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
    screen.field("status", status_tone(row.status.name()), row.status.name())?;
    screen.field("source", Tone::Plain, &row.source)?;
    screen.field("kind", Tone::Plain, &kind_name(row.kind))?;
    screen.field("error", Tone::Bad, &row.error.name)?;
    screen.field("message", Tone::Plain, &cause_message(&row.error.message))?;
    show_affected(stack, screen, &row.source, &affected_ids).await?;
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
        let (tone, state) = match replay.state {
            ReplayState::Ended => (Tone::Plain, ""),
            ReplayState::Sending => (Tone::Warn, ", not finished: in doubt"),
        };
        let text = format!("{}, the last {at} by {by}{state}", row.replays);
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
async fn show_affected(
    stack: &Stack,
    screen: &mut Screen,
    source: &str,
    affected_ids: &AffectedIds,
) -> Result<(), CliError> {
    let mut names = SiteNames::new(stack);
    let is_claimed = is_claimed(source, affected_ids);
    if let Some(site) = affected_ids.site_id {
        let name = names.of_site(site).await;
        let text = if is_claimed { format!("{name}, as the sender claims") } else { name };
        screen.field("site", Tone::Strong, &text)?;
        screen.field("siteId", Tone::Plain, &site.to_string())?;
    }
    if let Some(sender) = &affected_ids.sender {
        screen.field("sender", Tone::Strong, &format!("partition key {sender}"))?;
    }
    if let Some(sensor) = affected_ids.sensor_id {
        let at = match affected_ids.sensor_site_id {
            Some(site) => format!("registered at {} ({site})", names.of_site(site).await),
            None => "not in the register".to_owned(),
        };
        screen.field("sensorId", Tone::Plain, &format!("{sensor}, {at}"))?;
    }
    Ok(())
}

/// Returns the ids on the command line, or none if a filter selects the failures.
async fn selected_ids(ledger: &Ledger, selection: &Selection) -> Result<Vec<FailureId>, CliError> {
    let filtered = selection.all || !selection.filter.is_empty();
    match (selection.ids.is_empty(), filtered) {
        (true, false) => Err(CliError::usage("no failures are selected").advise(
            "use ids, --group, --site, --source, --kind, --since, --correlation, or --all",
        )),
        (false, true) => Err(CliError::usage("ids and filters can't be combined")
            .advise("use either ids or filters")),
        _ => {
            let mut ids = Vec::new();
            for id in &selection.ids {
                let id = find(ledger, id).await?;
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
            Ok(ids)
        }
    }
}

/// The selected failures, read page by page.
#[derive(Debug)]
enum SelectedFailures {
    Ids { ledger: Ledger, remaining: Vec<FailureId> },
    Filtered(Box<OpenFailures>),
}

impl SelectedFailures {
    async fn new(ledger: Ledger, selection: &Selection) -> Result<Self, CliError> {
        let remaining = selected_ids(&ledger, selection).await?;
        Ok(if remaining.is_empty() {
            Self::Filtered(Box::new(OpenFailures::new(ledger, selection.filter.clone())))
        } else {
            Self::Ids { ledger, remaining }
        })
    }

    async fn next(&mut self) -> Result<Option<Vec<FailureSummary>>, CliError> {
        match self {
            Self::Filtered(pager) => pager.next().await,
            Self::Ids { remaining, .. } if remaining.is_empty() => Ok(None),
            Self::Ids { ledger, remaining } => {
                let mut rows = Vec::new();
                for id in remaining.drain(..) {
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
    mut selection: Selection,
    note: &str,
    yes: bool,
) -> Result<Exit, CliError> {
    let ledger = stack.ledger();
    selection.filter.resolve(stack).await?;
    let mut selected = SelectedFailures::new(ledger.clone(), &selection).await?;
    if !yes {
        let (mut table, mut names, mut count) = (table(), SiteNames::new(stack), 0);
        while let Some(page) = selected.next().await? {
            count += page.len();
            if screen.json {
                page.iter().try_for_each(|row| screen.entry(row))?;
            } else {
                print(screen, &mut table, &mut names, &page).await?;
            }
        }
        if count == 0 {
            return report_none(stack, screen, &selection.filter, &[Status::Open]).await;
        }
        if !screen.json {
            screen.line(&preview_text(count, "discarded"))?;
        }
        return Ok(Exit::Done);
    }
    let (auditor, owners) = (Auditor::new(stack).await?, Owners::new(stack));
    let (mut discarded, mut skipped) = (0, BTreeMap::<&str, u32>::new());
    while let Some(page) = selected.next().await? {
        for row in page {
            if row.status != Status::Open {
                *skipped.entry(row.status.name()).or_default() += 1;
                continue;
            }
            let operator = owners.of_failure(&row.source, &row.affected_ids).await?;
            auditor.record(operator, Action::DiscardFailure, row.id).await?;
            match ledger.discard(row.id, note).await? {
                DiscardResult::Discarded => discarded += 1,
                DiscardResult::NotOpen(status) => *skipped.entry(status.name()).or_default() += 1,
                DiscardResult::NotFound => *skipped.entry("does not exist").or_default() += 1,
            }
        }
    }
    if discarded == 0 && skipped.is_empty() {
        selection.filter.check(stack).await?;
    }
    if screen.json {
        screen.document(&json!({ "discarded": discarded, "skipped": skipped }))?;
    } else {
        screen.line(&format!("{discarded} discarded{}", skipped_text(&skipped)))?;
    }
    Ok(Exit::Done)
}

/// Returns `, 3 skipped (2 x; 1 y)`, or an empty text.
fn skipped_text<K: AsRef<str>>(skipped: &BTreeMap<K, u32>) -> String {
    let all: u32 = skipped.values().sum();
    if all == 0 {
        return String::new();
    }
    let each: Vec<_> =
        skipped.iter().map(|(reason, count)| format!("{count} {}", reason.as_ref())).collect();
    format!(", {all} skipped ({})", each.join("; "))
}
