//! The command `fieldctl failures replay`.

use std::{cell::RefCell, collections::BTreeMap, env, num::NonZeroU32, pin::pin, time::Duration};

use clap::Args;
use contracts::{
    OnboardingId, Timestamp, names,
    stream::{Part, Record},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use ledger::{
    Claim, ClaimOptions, ErrorInfo, FailureId, FailureRow, Finish, Kind, Ledger, Outcome, Status,
    Summary,
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

use super::{Chosen, Which, counted, none, payload, skips};
use crate::{
    commands::sites::{self, Undoable},
    error::{CliError, Exit},
    names::Names,
    output::{Progress, Screen, Tone},
    render::{Table, age, length, plain, short},
    resend::{Entry, Resend, Sent, undoes},
    stack::Stack,
    teardown::{Teardown, close_repaired, ended},
    walk::{Filter, Walk, kind},
};

/// The maximum time between the recordings of the parts of a record. They arrive one right after another.
const PARTS_MILLIS: i64 = 60 * 60 * 1000;

/// The function whose replay starts a teardown.
const RECOVER_ONBOARDING: &str = "recover-onboarding";
/// The maximum time between the start of a teardown and the recording of its failure: a day of retries.
const RECOVERY_MILLIS: i64 = 24 * 60 * 60 * 1000;

/// The options of a replay.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The selected failures.
    #[command(flatten)]
    which: Which,
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
    #[arg(long, default_value = "10m", value_parser = length)]
    wait: Duration,
    /// Include failures of interrupted replays, which may already have been sent.
    #[arg(long)]
    in_doubt: bool,
    /// Include failures that were already replayed five times.
    #[arg(long)]
    force: bool,
}

/// The result of replaying a failure.
enum Ended {
    /// It was done, or there was nothing left to do. Holds the reason in that case.
    Replayed(Option<String>),
    Failed(ErrorInfo),
    /// It was sent, and its outcome is not known yet.
    Unknown(String),
    InDoubt(String),
    /// It is not open, or it is sent with another failure.
    Skipped(String),
    /// It was not sent, and stays open.
    Left(String),
    /// It was not sent: it would undo a site that is in service.
    Refused(String),
    /// It was not sent, and no other failure can be sent either.
    Stop(CliError),
}

/// The counts of a run's results.
#[derive(Default)]
struct Count {
    replayed: u32,
    failed: u32,
    unknown: u32,
    in_doubt: u32,
    refused: u32,
    skipped: BTreeMap<String, u32>,
    /// The number of skipped failures that stay open.
    left: u32,
}

/// The data that every replay of a run needs.
struct Run<'a> {
    stack: &'a Stack,
    ledger: Ledger,
    resend: Resend<'a>,
    /// The id of all claims of this run.
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
fn interruption() -> Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            sender.send_replace(true);
        }
    });
    receiver
}

/// Waits until the value is `true`. Never returns if it can't become so.
async fn is_true(mut receiver: Receiver<bool>) {
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
    options.which.filter.resolve(stack).await?;
    let chosen = Chosen::new(ledger.clone(), &options.which).await?;
    if !options.yes {
        return dry(stack, screen, ledger, &options.which, chosen).await;
    }
    let count = Chosen::new(ledger.clone(), &options.which).await?.count().await?;
    if count == 0 {
        return none(stack, screen, &options.which.filter, &[Status::Open]).await;
    }
    let progress = Progress::bar(count);
    let run = Run {
        stack,
        ledger,
        resend: Resend::new(stack),
        id: Uuid::new_v4(),
        by: env::var("USER").ok(),
        options: ClaimOptions { too_often: options.force, in_doubt: options.in_doubt },
        wait: options.wait,
        progress: &progress,
        undone: RefCell::default(),
        interrupted: interruption(),
    };
    let mut ticks = interval(Duration::from_secs(1) / options.rate.get());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ticks = stream::unfold(ticks, |mut ticks| async move {
        ticks.tick().await;
        Some(((), ticks))
    });
    let pages = stream::try_unfold(chosen, |mut chosen| async move {
        Ok::<_, CliError>(
            chosen.next().await?.map(|page| (stream::iter(page).map(Ok::<_, CliError>), chosen)),
        )
    });
    // After Ctrl-C no further failures are started. Running calls are completed. Waits for teardowns end at once.
    let halt = Notify::new();
    let interrupted = run.interrupted.clone();
    let halted = async {
        tokio::select! {
            () = is_true(interrupted.clone()) => {}
            () = halt.notified() => {}
        }
    };
    let taken = pages.try_flatten().zip(ticks).take_until(halted);
    let width = usize::try_from(options.concurrency.get()).unwrap_or(usize::MAX);
    let ended = taken
        .map(|(row, ())| async {
            let row = row?;
            let ended = run.replay(&row).await?;
            Ok::<_, CliError>((row, ended))
        })
        .buffer_unordered(width);
    let mut ended = pin!(ended);

    let (mut count, mut stop) = (Count::default(), None);
    while let Some(one) = ended.next().await {
        match one {
            Ok((_, Ended::Stop(trouble))) | Err(trouble) => {
                stop = stop.or(Some(trouble));
                halt.notify_one();
            }
            Ok((row, one)) => progress.suspend(|| count.add(screen, &row, one))?,
        }
        progress.step();
    }
    progress.clear();
    let undone = run.undone.take();
    let closed = if undone.is_empty() { 0 } else { close_repaired(&run.ledger, &undone).await? };
    let interrupted = *interrupted.borrow();
    count.show(screen, closed, interrupted)?;
    match stop {
        Some(trouble) => Err(trouble),
        None if count.failed + count.in_doubt + count.left > 0 || interrupted => Ok(Exit::Failed),
        None if count.refused > 0 => Ok(Exit::Refused),
        None if count.unknown > 0 => Ok(Exit::Unknown),
        None => Ok(Exit::Done),
    }
}

/// Returns where a failure would be sent and the site that it would undo, if any, or why it would not be sent.
async fn preview(
    stack: &Stack,
    ledger: &Ledger,
    row: &Summary,
) -> Result<Result<(Entry, Option<Undoable>), String>, CliError> {
    if row.status != Status::Open {
        return Ok(Err(format!("it is {}", row.status.name())));
    }
    let Some(entry) = Entry::of(row.kind, &row.source) else {
        return Ok(Err("it has no known form".to_owned()));
    };
    if !undoes(&row.source) {
        return Ok(Ok((entry, None)));
    }
    let Some(full) = ledger.get(row.id).await? else { return Ok(Err("it is gone".to_owned())) };
    Ok(match undone_site(stack, &full).await {
        Ok(site) => Ok((entry, Some(site))),
        Err(trouble) if trouble.exit == Exit::Aws => return Err(trouble),
        Err(trouble) => Err(trouble.message),
    })
}

/// Returns the site that a replay of this failure undoes. Refuses a site that is in service, as
/// `sagas recover` does.
async fn undone_site(stack: &Stack, row: &FailureRow) -> Result<Undoable, CliError> {
    let site = row.site_id.ok_or_else(|| {
        CliError::new(Exit::Refused, "its payload names no site")
            .advise(format!("read it: fieldctl failures show {}", short(&row.id)))
    })?;
    sites::undoable(stack, site).await
}

async fn dry(
    stack: &Stack,
    screen: &mut Screen,
    ledger: Ledger,
    which: &Which,
    mut chosen: Chosen,
) -> Result<Exit, CliError> {
    let (mut names, mut seen) = (Names::new(stack), 0);
    let mut table =
        Table::new(["ID", "SITE", "UNDOES", "KIND", "REPLAYS", "LAST", "ERROR", "GOES TO"]);
    let mut count = 0;
    while let Some(page) = chosen.next().await? {
        let mut rows = Vec::with_capacity(page.len());
        seen += page.len();
        for row in page {
            let preview = preview(stack, &ledger, &row).await?;
            count += usize::from(preview.is_ok());
            if screen.json {
                let (entry, undoes) = preview.ok().unzip();
                let entry = entry.map(|entry| entry.to_string());
                screen
                    .entry(&json!({ "id": row.id, "goesTo": entry, "undoes": undoes.flatten() }))?;
                continue;
            }
            let (entry, site) = match preview {
                Ok((entry, site)) => (plain(entry.to_string()), site),
                Err(why) => ((format!("nowhere: {why}"), Tone::Faint), None),
            };
            let site = site.map_or_else(|| "-".to_owned(), |site| site.to_string());
            rows.push(vec![
                plain(short(&row.id)),
                plain(names.whom(&row.source, &row.concerns).await),
                plain(site),
                plain(kind(row.kind)),
                plain(row.replays.to_string()),
                (age(screen.now, row.last_at), Tone::Faint),
                (row.error.name, Tone::Bad),
                entry,
            ]);
        }
        table.page(screen, &rows)?;
    }
    if seen == 0 {
        return none(stack, screen, &which.filter, &[Status::Open]).await;
    }
    if !screen.json {
        let count = counted(count);
        screen.line(&format!("{count} would be replayed; --yes does it."))?;
    }
    Ok(Exit::Done)
}

/// The payload to send, and the other failures whose work it contains.
struct Work {
    payload: String,
    others: Vec<FailureId>,
}

impl Run<'_> {
    /// Claims the failure, sends its work and records the outcome.
    async fn replay(&self, row: &Summary) -> Result<Ended, CliError> {
        let skip = |why: &str| Ok(Ended::Skipped(why.to_owned()));
        if row.status != Status::Open {
            return skip(row.status.name());
        }
        let Some(entry) = Entry::of(row.kind, &row.source) else {
            return Ok(Ended::Left("in no known form".to_owned()));
        };
        let Some(full) = self.ledger.get(row.id).await? else { return skip("gone") };
        if undoes(&row.source)
            && let Err(trouble) = undone_site(self.stack, &full).await
        {
            return match trouble.exit {
                Exit::Aws => Err(trouble),
                _ => Ok(Ended::Refused(trouble.message)),
            };
        }
        let work = match self.work(&full).await {
            Ok(Some(work)) => work,
            Ok(None) => return skip("part of a record, replayed with its first part"),
            Err(trouble) => return gone(trouble),
        };

        let mut claimed: Vec<FailureRow> = Vec::new();
        for id in std::iter::once(row.id).chain(work.others) {
            let by = self.by.as_deref();
            let why =
                match self.ledger.claim(id, self.id, by, self.options, Timestamp::now()).await? {
                    Claim::Claimed(row) => {
                        claimed.push(*row);
                        continue;
                    }
                    Claim::NotOpen(status) => Ended::Skipped(status.name().to_owned()),
                    Claim::TooOften => {
                        Ended::Left("replayed five times, --force insists".to_owned())
                    }
                    Claim::InDoubt(_) => Ended::Left(
                        "in doubt: an unfinished replay may have sent it, --in-doubt insists"
                            .to_owned(),
                    ),
                    Claim::Unknown => Ended::Skipped("gone".to_owned()),
                };
            self.release(&claimed).await?;
            return Ok(why);
        }
        let Some(first) = claimed.first() else { return skip("gone") };

        let outcome = match self.resend.send(&entry, first, &work.payload).await {
            Sent::Done if row.source == RECOVER_ONBOARDING => self.recovery(first).await?,
            Sent::Done => Outcome::Done,
            Sent::Moot(why) => Outcome::Moot(why),
            Sent::Failed(error) => Outcome::Failed(error),
            Sent::Started(arn) => self.teardown(first, &arn).await,
            // The claims stay, so that nothing sends the work again unless the operator forces it.
            Sent::InDoubt(why) => return Ok(Ended::InDoubt(why)),
            Sent::Missing(trouble) => {
                self.release(&claimed).await?;
                return gone(trouble);
            }
            Sent::Not(trouble) => {
                self.release(&claimed).await?;
                return Ok(Ended::Stop(trouble));
            }
        };
        let mut ended = Ended::Replayed(match &outcome {
            Outcome::Moot(why) => Some(why.clone()),
            _ => None,
        });
        for row in &claimed {
            let finish = self.ledger.finish(row.id, self.id, &outcome).await?;
            ended = match (&outcome, finish) {
                (Outcome::Failed(error), _) => Ended::Failed(error.clone()),
                (Outcome::Unknown, _) => {
                    let of = row
                        .correlation_id
                        .map_or_else(|| row.execution_name(), |id| id.to_string());
                    Ended::Unknown(format!("its site-teardown still runs; fieldctl trace {of}"))
                }
                (_, Finish::Replayed) => ended,
                (_, Finish::Stays(_)) => {
                    Ended::Failed(ErrorInfo::new("CameBack", "it failed again meanwhile"))
                }
                (_, Finish::NotOurs) => {
                    Ended::InDoubt("another replay claimed it meanwhile".to_owned())
                }
            };
        }
        Ok(ended)
    }

    /// Waits for the teardown that recover-onboarding started now or earlier.
    async fn recovery(&self, row: &FailureRow) -> Result<Outcome, CliError> {
        let Some(onboarding) = row.correlation_id else { return Ok(Outcome::Done) };
        let prefix = format!("recovery-{onboarding}");
        let since = row.first_at.plus_millis(-RECOVERY_MILLIS);
        let teardowns =
            self.stack.executions(names::SITE_TEARDOWN, None, since, usize::MAX).await?;
        Ok(match teardowns.iter().find(|it| it.name.starts_with(&prefix)) {
            Some(teardown) => self.teardown(row, &teardown.arn).await,
            // The saga had already been undone.
            None => Outcome::Done,
        })
    }

    /// Waits for a teardown.
    async fn teardown(&self, row: &FailureRow, arn: &str) -> Outcome {
        let name = arn.rsplit(':').next().unwrap_or(arn);
        self.progress.show(&format!("waits for site-teardown {name}"));
        let teardown = tokio::select! {
            ended = ended(self.stack, arn, self.wait) => ended,
            () = is_true(self.interrupted.clone()) => Ok(Teardown::Running),
        };
        self.progress.show("");
        match teardown {
            Ok(Teardown::Succeeded) => {
                self.undone.borrow_mut().extend(row.correlation_id);
                Outcome::Done
            }
            Ok(Teardown::Failed(error)) => Outcome::Failed(error),
            // The teardown continues. After its end, record-failure closes or reopens the failure.
            Ok(Teardown::Running) | Err(_) => Outcome::Unknown,
        }
    }

    /// Withdraws the claims of work that was not sent.
    async fn release(&self, claimed: &[FailureRow]) -> Result<(), CliError> {
        for row in claimed {
            // Only this run ends its claims, so the result does not matter.
            let (Finish::Stays(_) | Finish::Replayed | Finish::NotOurs) =
                self.ledger.finish(row.id, self.id, &Outcome::NotSent).await?;
        }
        Ok(())
    }

    /// Returns the work to send. Returns `None` for a part of a record that is not the first part.
    async fn work(&self, row: &FailureRow) -> Result<Option<Work>, CliError> {
        let text = payload(self.stack, row).await?;
        let whole = |payload| Ok(Some(Work { payload, others: Vec::new() }));
        if row.kind != Kind::Quarantined {
            return whole(text);
        }
        match serde_json::from_str::<Record>(&text).ok().and_then(|record| record.part) {
            None => whole(text),
            Some(Part { number: 1, count }) => self.parts(row, text, count).await.map(Some),
            Some(_) => Ok(None),
        }
    }

    /// Joins the record whose first part is the row.
    async fn parts(&self, row: &FailureRow, first: String, count: usize) -> Result<Work, CliError> {
        let filter = Filter {
            source: Some(row.source.clone()),
            since: Some(row.last_at.plus_millis(-PARTS_MILLIS)),
            ..Filter::default()
        };
        let mut walk = Walk::new(self.ledger.clone(), &[Status::Open], filter);
        let (mut texts, mut others) = (vec![first], Vec::new());
        while let Some(page) = walk.next().await? {
            for near in page {
                let apart = near.first_at.millis().abs_diff(row.first_at.millis());
                if near.id == row.id || apart > PARTS_MILLIS.unsigned_abs() {
                    continue;
                }
                let Some(near) = self.ledger.get(near.id).await? else { continue };
                let text = payload(self.stack, &near).await?;
                if is_part_of_same(&text, &texts[0]) {
                    texts.push(text);
                    others.push(near.id);
                }
            }
        }
        let parts: Vec<Record> =
            texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        match Record::join(&parts) {
            Some(record) => Ok(Work { payload: json!(record).to_string(), others }),
            None => Err(CliError::not_found(format!(
                "of a record in {count} parts, {} are open",
                parts.len()
            ))),
        }
    }
}

/// Returns whether both payloads are parts of the same record.
fn is_part_of_same(one: &str, other: &str) -> bool {
    let parse = |text| serde_json::from_str::<Record>(text).ok().filter(|it| it.part.is_some());
    match (parse(one), parse(other)) {
        (Some(one), Some(other)) => one.event_id == other.event_id,
        _ => false,
    }
}

/// Converts an error of a missing function or payload, after which the failure stays open. Any other error ends
/// the run.
fn gone(trouble: CliError) -> Result<Ended, CliError> {
    match trouble.exit {
        Exit::NotFound => Ok(Ended::Left(trouble.message)),
        _ => Err(trouble),
    }
}

impl Count {
    /// Counts a result, and prints it unless it is a success.
    fn add(&mut self, screen: &mut Screen, row: &Summary, ended: Ended) -> Result<(), CliError> {
        let (word, tone, symbol, reason) = match ended {
            Ended::Replayed(why) => {
                self.replayed += 1;
                let reason = why.map(|why| format!("nothing to do: {why}"));
                ("REPLAYED", Tone::Good, "✔", reason.unwrap_or_default())
            }
            Ended::Unknown(why) => {
                self.unknown += 1;
                ("UNKNOWN", Tone::Warn, "?", format!("not known yet: {why}"))
            }
            Ended::Failed(error) => {
                self.failed += 1;
                ("FAILED", Tone::Bad, "✘", format!("{}: {}", error.name, error.message))
            }
            Ended::InDoubt(why) => {
                self.in_doubt += 1;
                ("IN_DOUBT", Tone::Warn, "?", format!("in doubt: {why}"))
            }
            Ended::Refused(why) => {
                self.refused += 1;
                ("REFUSED", Tone::Bad, "✘", format!("not sent: {why}"))
            }
            Ended::Left(why) => {
                self.left += 1;
                *self.skipped.entry(why.clone()).or_default() += 1;
                ("SKIPPED", Tone::Warn, "-", why)
            }
            Ended::Skipped(why) => {
                *self.skipped.entry(why.clone()).or_default() += 1;
                ("SKIPPED", Tone::Faint, "-", why)
            }
            Ended::Stop(_) => return Ok(()),
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
        let Self { replayed, failed, unknown, in_doubt, refused, skipped, left: _ } = self;
        let counted = |count: u32, what: &str| match count {
            0 => String::new(),
            count => format!(", {count} {what}"),
        };
        let unknown = counted(*unknown, "not known yet");
        let (doubt, refused) = (counted(*in_doubt, "in doubt"), counted(*refused, "refused"));
        let cut = if interrupted { "; interrupted, the rest is as it was" } else { "" };
        let line = format!(
            "{replayed} replayed, {failed} failed again{unknown}{doubt}{refused}{}{cut}",
            skips(skipped)
        );
        screen.line(&line)?;
        match closed {
            0 => Ok(()),
            closed => screen.line(&format!(
                "Closed, since a site-teardown of their onboarding succeeded: {closed} more."
            )),
        }
    }
}
