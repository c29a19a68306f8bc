//! The command `fieldctl failures replay`.

use std::{cell::RefCell, collections::BTreeMap, env, num::NonZeroU32, pin::pin, time::Duration};

use ::audit::Action;
use clap::Args;
use contracts::{
    OnboardingId, Timestamp, names,
    stream::{Part, Record},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use ledger::{
    ClaimOptions, ClaimResult, ErrorInfo, FailureId, FailureRow, FailureSummary, FinishResult,
    Kind, Ledger, ReplayOutcome, Status, sources::RECOVER_ONBOARDING,
};
use serde_json::json;
use tokio::{
    sync::{
        Notify,
        watch::{self, Receiver},
    },
    time::{MissedTickBehavior, interval},
};
use uuid::Uuid;

use super::{SelectedFailures, Selection, payload, preview_text, report_none, skipped_text};
use crate::{
    audit::{Auditor, Owners},
    commands::sites::{self, UndoableSite},
    error::{CliError, Exit},
    failure_pager::{FailureFilter, FailurePager, kind_name},
    names::SiteNames,
    output::{Progress, Screen, Tone},
    render::{Table, age, parse_duration, plain, short},
    resend::{ReplayTarget, Resend, SendOutcome, undoes},
    stack::Stack,
    teardown::{TeardownStatus, close_repaired, wait_for_teardown},
};

/// The maximum time between the recordings of two parts of a record. A record that is too long for one message is
/// recorded in parts, each as a failure of its own. The time is usually much shorter, because the parts are sent one
/// after another.
const MAX_PARTS_MILLIS: i64 = 60 * 60 * 1000;

/// The maximum time between the start of a teardown by recover-onboarding and the recording of that function's failure:
/// a day of retries.
const MAX_RECOVERY_MILLIS: i64 = 24 * 60 * 60 * 1000;

/// The options of a replay.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The selected failures.
    #[command(flatten)]
    selection: Selection,
    /// Send the work.
    #[arg(long)]
    yes: bool,
    /// The maximum number of replays started in one second.
    #[arg(long, value_name = "PER SECOND", default_value = "10")]
    rate: NonZeroU32,
    /// The maximum number of concurrent replays.
    #[arg(long, default_value = "4")]
    concurrency: NonZeroU32,
    /// How long to wait for the end of each site-teardown.
    #[arg(long, default_value = "10m", value_parser = parse_duration)]
    wait: Duration,
    /// Include failures of interrupted replays, which may already have been sent.
    #[arg(long)]
    in_doubt: bool,
    /// Include failures that were already replayed five times.
    #[arg(long)]
    force: bool,
}

/// The result of replaying a failure.
enum ReplayResult {
    /// The work was done, or there was nothing left to do. In the second case it holds the reason.
    Replayed(Option<String>),
    Failed(ErrorInfo),
    /// It was sent, and its outcome is not known yet.
    Unknown(String),
    /// It may have been sent. Holds the reason.
    InDoubt(String),
    /// It was not sent: it is not open, or another failure's replay includes its work.
    Skipped(String),
    /// It was not sent, and stays open.
    StaysOpen(String),
    /// It was not sent: it would undo a site that is in service.
    Refused(String),
    /// It was not sent, and no other failure can be sent either.
    Stop(CliError),
}

/// The counts of a run's results.
#[derive(Default)]
struct ResultCounts {
    replayed: u32,
    failed: u32,
    unknown: u32,
    in_doubt: u32,
    refused: u32,
    skipped: BTreeMap<String, u32>,
    /// The number of skipped failures that stay open.
    left_open: u32,
}

/// The data that every replay of a run needs.
struct ReplayRun<'a> {
    stack: &'a Stack,
    ledger: Ledger,
    resend: Resend<'a>,
    auditor: Auditor,
    owners: Owners<'a>,
    /// The id of this run's claims. A claim reserves a failure, so that no other run sends its work.
    id: Uuid,
    by: Option<String>,
    options: ClaimOptions,
    /// How long to wait for the end of a teardown.
    wait: Duration,
    progress: &'a Progress,
    /// The onboardings of teardowns that succeeded.
    undone: RefCell<Vec<OnboardingId>>,
    /// Whether Ctrl-C was pressed.
    interrupted: Receiver<bool>,
}

/// Returns a receiver whose value becomes `true` at Ctrl-C.
fn watch_ctrl_c() -> Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            sender.send_replace(true);
        }
    });
    receiver
}

/// Waits until the value is `true`. Never returns if the sender is dropped before that.
async fn wait_until_true(mut receiver: Receiver<bool>) {
    if receiver.wait_for(|value| *value).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Shows what would be sent and where, or sends it and shows the results.
pub async fn run(
    stack: &Stack,
    screen: &mut Screen,
    mut options: Options,
) -> Result<Exit, CliError> {
    let ledger = stack.ledger();
    options.selection.filter.resolve(stack).await?;
    let selected = SelectedFailures::new(ledger.clone(), &options.selection).await?;
    if !options.yes {
        return preview_all(stack, screen, ledger, &options.selection, selected).await;
    }
    let count = SelectedFailures::new(ledger.clone(), &options.selection).await?.count().await?;
    if count == 0 {
        return report_none(stack, screen, &options.selection.filter, &[Status::Open]).await;
    }
    let auditor = Auditor::new(stack).await?;
    let progress = Progress::bar(count, "Ctrl-C stops after the running replays");
    let run = ReplayRun {
        stack,
        ledger,
        resend: Resend::new(stack),
        auditor,
        owners: Owners::new(stack),
        id: Uuid::new_v4(),
        by: env::var("USER").ok(),
        options: ClaimOptions { over_limit: options.force, in_doubt: options.in_doubt },
        wait: options.wait,
        progress: &progress,
        undone: RefCell::default(),
        interrupted: watch_ctrl_c(),
    };
    let mut ticks = interval(Duration::from_secs(1) / options.rate.get());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(ticks, |mut ticks| async move {
        ticks.tick().await;
        Some(((), ticks))
    });
    let pages = stream::try_unfold(selected, |mut selected| async move {
        Ok::<_, CliError>(
            selected
                .next()
                .await?
                .map(|page| (stream::iter(page).map(Ok::<_, CliError>), selected)),
        )
    });
    // After Ctrl-C no further replays are started. Running calls are completed. Waiting for teardowns ends at once.
    let halt = Notify::new();
    let interrupted = run.interrupted.clone();
    let halted = async {
        tokio::select! {
            () = wait_until_true(interrupted.clone()) => {}
            () = halt.notified() => {}
        }
    };
    let started = pages.try_flatten().zip(ticks).take_until(halted);
    let concurrency = usize::try_from(options.concurrency.get()).unwrap_or(usize::MAX);
    let results = started
        .map(|(row, ())| async {
            let row = row?;
            let result = run.replay(&row).await?;
            Ok::<_, CliError>((row, result))
        })
        .buffer_unordered(concurrency);
    let mut results = pin!(results);

    let (mut counts, mut stop) = (ResultCounts::default(), None);
    while let Some(result) = results.next().await {
        match result {
            Ok((_, ReplayResult::Stop(error))) | Err(error) => {
                stop = stop.or(Some(error));
                halt.notify_one();
            }
            Ok((row, result)) => progress.suspend(|| counts.add(screen, &row, result))?,
        }
        progress.step();
    }
    progress.clear();
    let undone = run.undone.take();
    let closed = if undone.is_empty() { 0 } else { close_repaired(&run.ledger, &undone).await? };
    let interrupted = *interrupted.borrow();
    counts.show(screen, closed, interrupted)?;
    match stop {
        Some(error) => Err(error),
        None if counts.failed + counts.in_doubt + counts.left_open > 0 || interrupted => {
            Ok(Exit::Failed)
        }
        None if counts.refused > 0 => Ok(Exit::Refused),
        None if counts.unknown > 0 => Ok(Exit::Unknown),
        None => Ok(Exit::Done),
    }
}

/// Returns the target of a replay, and the site that the replay would undo, if any. Returns the reason as the inner
/// `Err` if the failure would not be sent.
async fn preview(
    stack: &Stack,
    ledger: &Ledger,
    row: &FailureSummary,
) -> Result<Result<(ReplayTarget, Option<UndoableSite>), String>, CliError> {
    if row.status != Status::Open {
        return Ok(Err(format!("it is {}", row.status.name())));
    }
    let Some(target) = ReplayTarget::of_failure(row.kind, &row.source) else {
        return Ok(Err("it is unreadable".to_owned()));
    };
    if !undoes(&row.source) {
        return Ok(Ok((target, None)));
    }
    let Some(full) = ledger.get(row.id).await? else {
        return Ok(Err("it no longer exists".to_owned()));
    };
    Ok(match site_to_undo(stack, &full).await {
        Ok(site) => Ok((target, Some(site))),
        Err(error) if error.exit == Exit::Aws => return Err(error),
        Err(error) => Err(error.message),
    })
}

/// Returns the site that a replay of this failure undoes. Refuses a site that is in service, as
/// `sagas recover` does.
async fn site_to_undo(stack: &Stack, row: &FailureRow) -> Result<UndoableSite, CliError> {
    let site = row.site_id.ok_or_else(|| {
        CliError::new(Exit::Refused, "the payload has no site id")
            .advise(format!("read the payload: fieldctl failures show {}", short(&row.id)))
    })?;
    sites::undoable_site(stack, site).await
}

async fn preview_all(
    stack: &Stack,
    screen: &mut Screen,
    ledger: Ledger,
    selection: &Selection,
    mut selected: SelectedFailures,
) -> Result<Exit, CliError> {
    let (mut names, mut read) = (SiteNames::new(stack), 0);
    let mut table =
        Table::new(["ID", "SITE", "UNDOES", "KIND", "REPLAYS", "LAST", "ERROR", "GOES TO"]);
    let mut count = 0;
    while let Some(page) = selected.next().await? {
        let mut rows = Vec::with_capacity(page.len());
        read += page.len();
        for row in page {
            let preview = preview(stack, &ledger, &row).await?;
            count += usize::from(preview.is_ok());
            if screen.json {
                let (target, undoes) = preview.ok().unzip();
                let target = target.map(|target| target.to_string());
                screen.entry(
                    &json!({ "id": row.id, "goesTo": target, "undoes": undoes.flatten() }),
                )?;
                continue;
            }
            let (target, site) = match preview {
                Ok((target, site)) => (plain(target.to_string()), site),
                Err(reason) => ((format!("not sent: {reason}"), Tone::Faint), None),
            };
            let site = site.map_or_else(|| "-".to_owned(), |site| site.to_string());
            rows.push(vec![
                plain(short(&row.id)),
                plain(names.site_or_sender(&row.source, &row.affected_ids).await),
                plain(site),
                plain(kind_name(row.kind)),
                plain(row.replays.to_string()),
                (age(screen.now, row.last_at), Tone::Faint),
                (row.error.name, Tone::Bad),
                target,
            ]);
        }
        table.page(screen, &rows)?;
    }
    if read == 0 {
        return report_none(stack, screen, &selection.filter, &[Status::Open]).await;
    }
    if !screen.json {
        screen.line(&preview_text(count, "replayed"))?;
    }
    Ok(Exit::Done)
}

/// The payload to send, and the other failures whose work it contains.
struct Work {
    payload: String,
    others: Vec<FailureId>,
}

impl ReplayRun<'_> {
    /// Claims the failure, sends its work and records the outcome.
    async fn replay(&self, row: &FailureSummary) -> Result<ReplayResult, CliError> {
        let skip = |why: &str| Ok(ReplayResult::Skipped(why.to_owned()));
        if row.status != Status::Open {
            return skip(row.status.name());
        }
        let Some(target) = ReplayTarget::of_failure(row.kind, &row.source) else {
            return Ok(ReplayResult::StaysOpen("unreadable, can't be replayed".to_owned()));
        };
        let Some(full) = self.ledger.get(row.id).await? else { return skip("does not exist") };
        if undoes(&row.source)
            && let Err(error) = site_to_undo(self.stack, &full).await
        {
            return match error.exit {
                Exit::Aws => Err(error),
                _ => Ok(ReplayResult::Refused(error.message)),
            };
        }
        let work = match self.work(&full).await {
            Ok(Some(work)) => work,
            Ok(None) => return skip("part of a record, replayed with its first part"),
            Err(error) => return stays_open_if_not_found(error),
        };

        let mut claimed: Vec<FailureRow> = Vec::new();
        for id in std::iter::once(row.id).chain(work.others) {
            let by = self.by.as_deref();
            let result =
                match self.ledger.claim(id, self.id, by, self.options, Timestamp::now()).await? {
                    ClaimResult::Claimed(row) => {
                        claimed.push(*row);
                        continue;
                    }
                    ClaimResult::NotOpen(status) => ReplayResult::Skipped(status.name().to_owned()),
                    ClaimResult::LimitReached => ReplayResult::StaysOpen(
                        "replayed five times (--force includes it)".to_owned(),
                    ),
                    ClaimResult::InDoubt(_) => ReplayResult::StaysOpen(
                        "in doubt: an interrupted replay may have sent it (--in-doubt includes it)"
                            .to_owned(),
                    ),
                    ClaimResult::NotFound => ReplayResult::Skipped("does not exist".to_owned()),
                };
            self.release(&claimed).await?;
            return Ok(result);
        }
        let Some(first) = claimed.first() else { return skip("does not exist") };

        for row in &claimed {
            if let Err(error) = self.record(row).await {
                self.release(&claimed).await?;
                return Ok(ReplayResult::Stop(error));
            }
        }
        let outcome = match self.resend.send(&target, first, &work.payload).await {
            SendOutcome::Done if row.source == RECOVER_ONBOARDING => {
                self.wait_for_recovery(first).await?
            }
            SendOutcome::Done => ReplayOutcome::Done,
            SendOutcome::Moot(why) => ReplayOutcome::NothingToDo(why),
            SendOutcome::Failed(error) => ReplayOutcome::Failed(error),
            SendOutcome::Started(arn) => self.wait_for_teardown(first, &arn).await,
            // The claims stay, so that nothing sends the work again without --in-doubt.
            SendOutcome::InDoubt(why) => return Ok(ReplayResult::InDoubt(why)),
            SendOutcome::Impossible(why) => {
                self.release(&claimed).await?;
                return Ok(ReplayResult::StaysOpen(why));
            }
            SendOutcome::NotSent(error) => {
                self.release(&claimed).await?;
                return Ok(ReplayResult::Stop(error));
            }
        };
        let mut result = ReplayResult::Replayed(match &outcome {
            ReplayOutcome::NothingToDo(why) => Some(why.clone()),
            _ => None,
        });
        for row in &claimed {
            let finish = self.ledger.finish(row.id, self.id, &outcome).await?;
            result = match (&outcome, finish) {
                (ReplayOutcome::Failed(error), _) => ReplayResult::Failed(error.clone()),
                (ReplayOutcome::Unknown, _) => {
                    let id = row
                        .correlation_id
                        .map_or_else(|| row.execution_name(), |id| id.to_string());
                    ReplayResult::Unknown(format!(
                        "its site-teardown is still running; see fieldctl trace {id}"
                    ))
                }
                (_, FinishResult::Replayed) => result,
                (_, FinishResult::Unchanged(_)) => ReplayResult::Failed(ErrorInfo::new(
                    "CameBack",
                    "the work failed again during the replay",
                )),
                (_, FinishResult::ClaimLost) => {
                    ReplayResult::InDoubt("another replay claimed it in the meantime".to_owned())
                }
            };
        }
        Ok(result)
    }

    /// Waits for the teardown that recover-onboarding started now or earlier.
    async fn wait_for_recovery(&self, row: &FailureRow) -> Result<ReplayOutcome, CliError> {
        let Some(onboarding) = row.correlation_id else { return Ok(ReplayOutcome::Done) };
        let prefix = format!("recovery-{onboarding}");
        let since = row.first_at.plus_millis(-MAX_RECOVERY_MILLIS);
        let teardowns =
            self.stack.executions(names::SITE_TEARDOWN, None, since, usize::MAX).await?;
        Ok(match teardowns.iter().find(|it| it.name.starts_with(&prefix)) {
            Some(teardown) => self.wait_for_teardown(row, &teardown.arn).await,
            // The saga had already been undone.
            None => ReplayOutcome::Done,
        })
    }

    /// Waits for a teardown.
    async fn wait_for_teardown(&self, row: &FailureRow, arn: &str) -> ReplayOutcome {
        let name = arn.rsplit(':').next().unwrap_or(arn);
        self.progress.show(&format!("waiting for site-teardown {name}"));
        let teardown = tokio::select! {
            status = wait_for_teardown(self.stack, arn, self.wait) => status,
            () = wait_until_true(self.interrupted.clone()) => Ok(TeardownStatus::Running),
        };
        self.progress.show("");
        match teardown {
            Ok(TeardownStatus::Succeeded) => {
                self.undone.borrow_mut().extend(row.correlation_id);
                ReplayOutcome::Done
            }
            Ok(TeardownStatus::Failed(error)) => ReplayOutcome::Failed(error),
            // The teardown continues. At its end, record-failure closes the failure of site-teardown or records it
            // again.
            Ok(TeardownStatus::Running) | Err(_) => ReplayOutcome::Unknown,
        }
    }

    /// Writes the entry of the audit trail.
    async fn record(&self, row: &FailureRow) -> Result<(), CliError> {
        let operator = self.owners.of_failure(&row.source, &row.affected_ids()).await?;
        self.auditor.record(operator, Action::ReplayFailure, row.id).await
    }

    /// Withdraws the claims of work that was not sent.
    async fn release(&self, claimed: &[FailureRow]) -> Result<(), CliError> {
        for row in claimed {
            // Only this run ends its claims, so the result does not matter.
            let (FinishResult::Unchanged(_) | FinishResult::Replayed | FinishResult::ClaimLost) =
                self.ledger.finish(row.id, self.id, &ReplayOutcome::NotSent).await?;
        }
        Ok(())
    }

    /// Returns the work to send. Returns `None` for a part of a record that is not the first part.
    async fn work(&self, row: &FailureRow) -> Result<Option<Work>, CliError> {
        let text = payload(self.stack, row).await?;
        let unsplit = |payload| Ok(Some(Work { payload, others: Vec::new() }));
        if row.kind != Kind::Quarantined {
            return unsplit(text);
        }
        match serde_json::from_str::<Record>(&text).ok().and_then(|record| record.part) {
            None => unsplit(text),
            Some(Part { number: 1, count }) => self.parts(row, text, count).await.map(Some),
            Some(_) => Ok(None),
        }
    }

    /// Joins the parts of the record whose first part is the row.
    async fn parts(&self, row: &FailureRow, first: String, count: usize) -> Result<Work, CliError> {
        let filter = FailureFilter {
            source: Some(row.source.clone()),
            since: Some(row.last_at.plus_millis(-MAX_PARTS_MILLIS)),
            ..FailureFilter::default()
        };
        let mut pager = FailurePager::new(self.ledger.clone(), &[Status::Open], filter);
        let (mut texts, mut others) = (vec![first], Vec::new());
        while let Some(page) = pager.next().await? {
            for candidate in page {
                let distance = candidate.first_at.millis().abs_diff(row.first_at.millis());
                if candidate.id == row.id || distance > MAX_PARTS_MILLIS.unsigned_abs() {
                    continue;
                }
                let Some(candidate) = self.ledger.get(candidate.id).await? else { continue };
                let text = payload(self.stack, &candidate).await?;
                if are_parts_of_same_record(&text, &texts[0]) {
                    texts.push(text);
                    others.push(candidate.id);
                }
            }
        }
        let parts: Vec<Record> =
            texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        match Record::join(&parts) {
            Some(record) => Ok(Work { payload: json!(record).to_string(), others }),
            None => Err(CliError::not_found(format!(
                "the record has {count} parts, but only {} are open failures",
                parts.len()
            ))),
        }
    }
}

/// Returns whether both payloads are parts of the same record.
fn are_parts_of_same_record(one: &str, other: &str) -> bool {
    let parse = |text| serde_json::from_str::<Record>(text).ok().filter(|it| it.part.is_some());
    match (parse(one), parse(other)) {
        (Some(one), Some(other)) => one.event_id == other.event_id,
        _ => false,
    }
}

/// Converts the error of a missing payload: the failure stays open, and the run continues. Any other error
/// ends the run.
fn stays_open_if_not_found(error: CliError) -> Result<ReplayResult, CliError> {
    match error.exit {
        Exit::NotFound => Ok(ReplayResult::StaysOpen(error.message)),
        _ => Err(error),
    }
}

impl ResultCounts {
    /// Counts a result and prints it. As text, a skipped failure is not printed, and a success only if it has a reason.
    fn add(
        &mut self,
        screen: &mut Screen,
        row: &FailureSummary,
        result: ReplayResult,
    ) -> Result<(), CliError> {
        let (word, tone, symbol, reason) = match result {
            ReplayResult::Replayed(why) => {
                self.replayed += 1;
                let reason = why.map(|why| format!("nothing to do: {why}"));
                ("REPLAYED", Tone::Good, "✔", reason.unwrap_or_default())
            }
            ReplayResult::Unknown(why) => {
                self.unknown += 1;
                ("UNKNOWN", Tone::Warn, "?", format!("not known yet: {why}"))
            }
            ReplayResult::Failed(error) => {
                self.failed += 1;
                ("FAILED", Tone::Bad, "✘", format!("{}: {}", error.name, error.message))
            }
            ReplayResult::InDoubt(why) => {
                self.in_doubt += 1;
                ("IN_DOUBT", Tone::Warn, "?", format!("in doubt: {why}"))
            }
            ReplayResult::Refused(why) => {
                self.refused += 1;
                ("REFUSED", Tone::Bad, "✘", format!("not sent: {why}"))
            }
            ReplayResult::StaysOpen(why) => {
                self.left_open += 1;
                *self.skipped.entry(why.clone()).or_default() += 1;
                ("SKIPPED", Tone::Warn, "-", why)
            }
            ReplayResult::Skipped(why) => {
                *self.skipped.entry(why.clone()).or_default() += 1;
                ("SKIPPED", Tone::Faint, "-", why)
            }
            ReplayResult::Stop(_) => return Ok(()),
        };
        if screen.json {
            return screen.entry(&json!({ "id": row.id, "outcome": word, "reason": reason }));
        }
        if word != "SKIPPED" && !reason.is_empty() {
            let text = format!(" {} {}  {reason}", short(&row.id), row.source);
            screen.line(screen.paint(tone, symbol).then(&text))?;
        }
        Ok(())
    }

    fn show(&self, screen: &mut Screen, closed: usize, interrupted: bool) -> Result<(), CliError> {
        if screen.json {
            return Ok(());
        }
        let Self { replayed, failed, unknown, in_doubt, refused, skipped, left_open: _ } = self;
        let counted = |count: u32, what: &str| match count {
            0 => String::new(),
            count => format!(", {count} {what}"),
        };
        let unknown = counted(*unknown, "not known yet");
        let (doubt, refused) = (counted(*in_doubt, "in doubt"), counted(*refused, "refused"));
        let interruption =
            if interrupted { "; interrupted, the other failures were not sent" } else { "" };
        let line = format!(
            "{replayed} replayed, {failed} failed again{unknown}{doubt}{refused}{}{interruption}",
            skipped_text(skipped)
        );
        screen.line(&line)?;
        match closed {
            0 => Ok(()),
            closed => screen.line(&format!(
                "{closed} more closed, because a site-teardown of their onboarding succeeded."
            )),
        }
    }
}
