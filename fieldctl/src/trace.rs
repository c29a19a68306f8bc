//! Shows the history of a site on one screen: events, sagas and failures in chronological order.

use std::collections::HashMap;

use contracts::{OnboardingFailure, OnboardingId, SiteId, Timestamp};
use ledger::{FailureSummary, Kind, Status};
use serde::Serialize;
use serde_json::Value;
use store::EventRow;

use crate::{
    error::CliError,
    output::{Screen, Text, Tone},
    render::{age, cause_message, serialized_name, short, span, wrap},
    saga::{Execution, ExecutionError, State, Undo},
    status::ProviderStatus,
};

/// Everything that is known about an onboarding.
#[derive(Debug)]
pub struct OnboardingHistory {
    /// The onboarding's id.
    pub onboarding_id: OnboardingId,
    /// The site's id.
    pub site_id: SiteId,
    /// The site, as `GET /sites/{siteId}` returns it. `None` if the API could not be read.
    pub site: Option<Value>,
    /// The executions of both state machines, in the order of their start.
    pub executions: Vec<Execution>,
    /// The events, in chronological order.
    pub events: Vec<EventRow>,
    /// The recorded failures.
    pub failures: Vec<FailureSummary>,
    /// The state of the payment provider, if a running saga waits for it.
    pub provider: Option<ProviderStatus>,
}

/// The state of an onboarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "standing")]
pub enum OnboardingState {
    /// A step failed.
    Failed {
        /// The step.
        step: String,
        /// The step's error.
        error: ExecutionError,
    },
    /// An execution is running.
    Running {
        /// The state machine.
        machine: String,
        /// The running state. `None` between two states.
        state: Option<String>,
        /// When the state was entered. Between two states: when the last event happened.
        since: Timestamp,
        /// Whether the state waits for a response.
        waiting: bool,
        /// The error of the state's last failed attempt.
        #[serde(rename = "lastError", skip_serializing_if = "Option::is_none")]
        last_error: Option<ExecutionError>,
    },
    /// No execution is running, and nothing failed.
    Ended,
    /// No execution was started.
    NotStarted,
}

/// An entry of the timeline.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum TimelineEntry {
    /// A domain event.
    #[serde(rename_all = "camelCase")]
    Event {
        /// When the event happened.
        at: Timestamp,
        /// The event's type.
        event: String,
        /// The entity, as `type#id`.
        entity: String,
        /// The event's position in the entity's sequence.
        sequence: u64,
        /// Whether the event was published to EventBridge.
        published: bool,
    },
    /// An execution started.
    Began {
        /// When it started.
        at: Timestamp,
        /// The state machine.
        machine: String,
        /// The execution's name.
        name: String,
    },
    /// A task state of an execution.
    State {
        /// When the state was entered.
        at: Timestamp,
        /// The state machine.
        machine: String,
        /// The state.
        #[serde(flatten)]
        state: State,
    },
    /// An execution ended.
    Ended {
        /// When it ended.
        at: Timestamp,
        /// The state machine.
        machine: String,
        /// The execution's status.
        status: String,
        /// The error with which the execution ended.
        #[serde(rename = "error", skip_serializing_if = "Option::is_none")]
        failure: Option<ExecutionError>,
    },
    /// A recorded failure.
    Failure {
        /// When the work failed last.
        at: Timestamp,
        /// The failure.
        #[serde(flatten)]
        failure: Box<FailureSummary>,
        /// The number of older failures of the same group that the timeline leaves out.
        #[serde(skip_serializing_if = "is_zero")]
        older: usize,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "for serde")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl TimelineEntry {
    /// Returns the time of the entry.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Event { at, .. }
            | Self::Began { at, .. }
            | Self::State { at, .. }
            | Self::Ended { at, .. }
            | Self::Failure { at, .. } => *at,
        }
    }
}

/// Returns the entries of an execution: its start, its states, its end.
#[must_use]
pub fn execution_entries(execution: &Execution) -> Vec<TimelineEntry> {
    let machine = &execution.machine;
    let mut entries = vec![TimelineEntry::Began {
        at: execution.started,
        machine: machine.clone(),
        name: execution.name.clone(),
    }];
    entries.extend(execution.states.iter().map(|state| TimelineEntry::State {
        at: state.entered,
        machine: machine.clone(),
        state: state.clone(),
    }));
    entries.extend(execution.stopped.map(|at| TimelineEntry::Ended {
        at,
        machine: machine.clone(),
        status: execution.status.clone(),
        failure: execution.failure.clone(),
    }));
    entries
}

impl OnboardingHistory {
    /// Returns all entries in chronological order. Among entries of the same time, those of executions come first, then
    /// events, then failures.
    #[must_use]
    pub fn timeline(&self) -> Vec<TimelineEntry> {
        let events = self.events.iter().map(|event| TimelineEntry::Event {
            at: event.occurred_at,
            event: event.kind.clone(),
            entity: event.entity.clone(),
            sequence: event.sequence,
            published: event.unpublished.is_none() && event.refused.is_none(),
        });
        let failures = self.failures.iter().map(|failure| TimelineEntry::Failure {
            at: failure.last_at,
            failure: Box::new(failure.clone()),
            older: 0,
        });
        let mut entries: Vec<_> = self
            .executions
            .iter()
            .flat_map(execution_entries)
            .chain(events)
            .chain(failures)
            .collect();
        entries.sort_by_key(TimelineEntry::at);
        entries
    }

    /// Returns the state of the onboarding: what is running now, or else what failed first.
    #[must_use]
    pub fn state(&self) -> OnboardingState {
        if let Some(running) = self.executions.iter().rfind(|execution| execution.is_running()) {
            let state = running.current();
            return OnboardingState::Running {
                machine: running.machine.clone(),
                state: state.map(|state| state.name.clone()),
                since: state.map_or(running.last_event, |state| state.entered),
                waiting: state.is_some_and(|state| state.submitted),
                last_error: state.and_then(|state| state.failures.last().cloned()),
            };
        }
        let rejections = self.events.iter().filter(|event| event.kind == "SiteRejected");
        let recorded = rejections
            .filter_map(|event| event.envelope().ok())
            .find_map(|envelope| serde_json::from_value(envelope.data["failure"].clone()).ok());
        let from_executions = || {
            let mut states = self.executions.iter().flat_map(|execution| &execution.states);
            states.find_map(|state| {
                let ExecutionError { error, message } = state.failure()?.clone();
                Some(OnboardingFailure { step: state.name.clone(), error, message })
            })
        };
        match recorded.or_else(from_executions) {
            Some(OnboardingFailure { step, error, message }) => {
                OnboardingState::Failed { step, error: ExecutionError { error, message } }
            }
            None if self.executions.is_empty() => OnboardingState::NotStarted,
            None => OnboardingState::Ended,
        }
    }

    /// Returns the state of the undo.
    #[must_use]
    pub fn undo(&self) -> Undo {
        Undo::from_executions(&self.executions)
    }

    /// Returns the history as one JSON document.
    #[must_use]
    pub fn document(&self) -> impl Serialize + use<> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Document {
            onboarding_id: OnboardingId,
            site_id: SiteId,
            site: Option<Value>,
            #[serde(flatten)]
            state: OnboardingState,
            incomplete: bool,
            #[serde(flatten)]
            undo: Undo,
            #[serde(skip_serializing_if = "Option::is_none")]
            provider: Option<ProviderStatus>,
            timeline: Vec<TimelineEntry>,
        }
        Document {
            onboarding_id: self.onboarding_id,
            site_id: self.site_id,
            site: self.site.clone(),
            state: self.state(),
            incomplete: self.undo() == Undo::Incomplete,
            undo: self.undo(),
            provider: self.provider.clone(),
            timeline: self.timeline(),
        }
    }

    /// Prints the header and the timeline.
    pub fn show(&self, screen: &mut Screen) -> Result<(), CliError> {
        if let Some(site) = &self.site {
            let text = |name: &str| site[name].as_str().unwrap_or("?");
            let name = format!("{} ({})", text("name"), text("operator"));
            screen.field("site", Tone::Strong, &name)?;
            screen.field("status", status_tone(text("status")), text("status"))?;
        }
        screen.field("siteId", Tone::Plain, &self.site_id.to_string())?;
        screen.field("onboardingId", Tone::Plain, &self.onboarding_id.to_string())?;
        self.print_state(screen)?;
        screen.line("")?;
        print_timeline(screen, &merge_quarantined(self.timeline()))
    }

    /// Prints the state of the payment provider. While the provider's circuit breaker is open, the commands of a
    /// billing step stay in their queue, so the saga waits.
    fn print_provider(&self, screen: &mut Screen) -> Result<(), CliError> {
        let Some(provider) = &self.provider else { return Ok(()) };
        let tone = if provider.fails() { Tone::Bad } else { Tone::Plain };
        screen.field("provider", tone, &provider.summary(screen.now))?;
        for detail in provider.details(screen.now) {
            screen.field("", Tone::Plain, &detail)?;
        }
        let next = if provider.fails() {
            provider.next()
        } else {
            format!("fieldctl logs {} --errors", self.site_id)
        };
        screen.field("next", Tone::Strong, &next)
    }

    fn print_state(&self, screen: &mut Screen) -> Result<(), CliError> {
        match self.state() {
            OnboardingState::Failed { step, error: ExecutionError { error, message } } => {
                screen.field("failed at", Tone::Bad, &step)?;
                screen.field("error", Tone::Bad, &error)?;
                screen.field("message", Tone::Plain, &message)?;
            }
            OnboardingState::Running { machine, state, since, waiting, last_error } => {
                let state = state.as_deref().unwrap_or("between two states");
                let waiting = if waiting { ", waiting for a response" } else { "" };
                let text = format!("{machine}: {state}, for {}{waiting}", age(screen.now, since));
                screen.field("current state", Tone::Warn, &text)?;
                if let Some(ExecutionError { error, message }) = last_error {
                    screen.field("last error", Tone::Bad, &format!("{error}: {message}"))?;
                }
                self.print_provider(screen)?;
            }
            OnboardingState::NotStarted => {
                screen.field("current state", Tone::Warn, "no saga was started")?;
            }
            OnboardingState::Ended => {}
        }
        match self.undo() {
            Undo::Incomplete => {
                let advice = format!(
                    "incomplete: fix the cause, then run `fieldctl sagas recover {}`",
                    self.onboarding_id
                );
                screen.field("undo", Tone::Bad, &advice)?;
            }
            Undo::Running { failed } if failed.is_empty() => {
                screen.field("undo", Tone::Warn, "in progress: site-teardown is running")?;
            }
            Undo::Running { failed } => {
                let text =
                    format!("in progress: site-teardown is running; failed: {}", failed.join(", "));
                screen.field("undo", Tone::Bad, &text)?;
            }
            Undo::Complete => {
                screen.field("undo", Tone::Good, "complete: the last site-teardown succeeded")?;
            }
            Undo::NotStarted if self.events.iter().any(|event| event.kind == "SiteRejected") => {
                let text =
                    "the site is REJECTED; AWS no longer keeps the execution of its site-teardown";
                screen.field("undo", Tone::Plain, text)?;
            }
            Undo::NotStarted => {}
        }
        let open = self.failures.iter().filter(|failure| failure.status == Status::Open).count();
        if open > 0 {
            let text = format!(
                "{open} open, see below; for advice: `fieldctl failures groups --site {}`",
                self.site_id
            );
            screen.field("failures", Tone::Warn, &text)?;
        }
        Ok(())
    }
}

/// Keeps only the newest failure of each group of the site's quarantined readings. A logger may cause thousands of
/// them.
fn merge_quarantined(entries: Vec<TimelineEntry>) -> Vec<TimelineEntry> {
    let mut older: HashMap<String, usize> = HashMap::new();
    let mut kept: Vec<TimelineEntry> = Vec::with_capacity(entries.len());
    // The entries are in chronological order. So the first failure of a group, counted from the end, is its newest.
    for mut entry in entries.into_iter().rev() {
        if let TimelineEntry::Failure { failure, .. } = &mut entry
            && failure.kind == Kind::Quarantined
            && failure.correlation_id.is_none()
        {
            let count = older.entry(failure.group()).or_insert(0);
            *count += 1;
            if *count > 1 {
                continue;
            }
        }
        kept.push(entry);
    }
    for entry in &mut kept {
        if let TimelineEntry::Failure { failure, older: omitted, .. } = entry {
            *omitted = older.get(&failure.group()).map_or(0, |count| count - 1);
        }
    }
    kept.reverse();
    kept
}

/// Returns the tone for a status of a site or an execution.
#[must_use]
pub fn status_tone(status: &str) -> Tone {
    match status {
        "ACTIVE" | "SUCCEEDED" | "COMPLETED" | "REPLAYED" => Tone::Good,
        "REJECTED" | "FAILED" | "TIMED_OUT" | "ABORTED" => Tone::Bad,
        "ONBOARDING" | "DECOMMISSIONING" | "RUNNING" | "PENDING_REDRIVE" | "OPEN" => Tone::Warn,
        _ => Tone::Faint,
    }
}

/// The parts of a line of the timeline, before they are laid out.
struct TimelineLine {
    symbol: &'static str,
    tone: Tone,
    name: String,
    duration: String,
    details: String,
}

impl TimelineLine {
    fn from_entry(entry: &TimelineEntry, now: Timestamp) -> Self {
        let line = |symbol, tone, name: &str, duration: String, details: String| Self {
            symbol,
            tone,
            name: name.to_owned(),
            duration,
            details,
        };
        match entry {
            TimelineEntry::Event { event, entity, sequence, published, at } => {
                let kind = entity.split('#').next().unwrap_or_default();
                let details = format!("{kind} {sequence}");
                if *published {
                    line("●", Tone::Plain, event, String::new(), details)
                } else {
                    let details = format!("{details}, not published for {}", age(now, *at));
                    line("○", Tone::Warn, event, String::new(), details)
                }
            }
            TimelineEntry::Began { machine, name, .. } => {
                line("▶", Tone::Strong, machine, String::new(), name.clone())
            }
            TimelineEntry::Ended { machine, status, failure, .. } => {
                // The message is already shown with the state that failed.
                let details = failure
                    .as_ref()
                    .map_or(status.clone(), |failure| format!("{status} {}", failure.error));
                line("■", status_tone(status), machine, String::new(), details)
            }
            TimelineEntry::State { state, .. } => Self::from_state(state, now),
            TimelineEntry::Failure { failure, older, .. } => {
                let times = match failure.attempts {
                    1 => String::new(),
                    times => format!(" {times} times"),
                };
                let tone = if failure.status == Status::Open { Tone::Bad } else { Tone::Faint };
                let group = match older {
                    0 => String::new(),
                    older => format!(", and {older} older of group {}", failure.group()),
                };
                let details = format!(
                    "{} {}{times}, {} {}: {}{group}",
                    short(&failure.id),
                    serialized_name(&failure.kind),
                    failure.status.name(),
                    failure.error.name,
                    cause_message(&failure.error.message)
                );
                line("⚠", tone, &failure.source, String::new(), details)
            }
        }
    }

    fn from_state(state: &State, now: Timestamp) -> Self {
        let until = state.exited.unwrap_or(now);
        let duration = span(until.millis() - state.entered.millis());
        let (symbol, tone) = match (state.exited, state.failure()) {
            (None, _) => ("…", Tone::Warn),
            (Some(_), Some(_)) => ("✘", Tone::Bad),
            // The execution was aborted or timed out while the state was running.
            (Some(_), None) if !state.succeeded => ("■", Tone::Bad),
            (Some(_), None) if state.attempts > 1 => ("✔", Tone::Warn),
            (Some(_), None) => ("✔", Tone::Good),
        };
        let mut details = Vec::new();
        if state.attempts > 1 {
            details.push(format!("{} attempts", state.attempts));
        }
        if state.exited.is_none() && state.submitted {
            details.push("waiting for a response".to_owned());
        }
        if state.exited.is_some() && !state.succeeded && state.failures.is_empty() {
            details.push("stopped with its execution".to_owned());
        }
        // An error that is repeated is shown once. The last error is shown with its message.
        let mut names: Vec<&str> = state.failures.iter().map(|it| it.error.as_str()).collect();
        let last = names.pop();
        names.retain(|name| Some(*name) != last);
        names.dedup();
        details.extend(names.into_iter().map(str::to_owned));
        details.extend(state.failures.last().map(|it| format!("{}: {}", it.error, it.message)));
        Self { symbol, tone, name: state.name.clone(), duration, details: details.join(", ") }
    }
}

/// Returns the indentation of an entry that belongs to an execution.
fn depth(entry: &TimelineEntry) -> usize {
    usize::from(matches!(entry, TimelineEntry::State { .. }))
}

/// The minimum width of a text beside a line of the timeline, in columns. With less space, a text that does not fit is
/// printed below the line.
const MIN_TEXT: usize = 40;

/// The indentation of what is printed below a line of the timeline, in columns.
const DETAIL_INDENT: usize = 15;

/// Prints a timeline. A line has the time, the time since the start, what happened, its duration, and further text,
/// which wraps.
pub fn print_timeline(screen: &mut Screen, entries: &[TimelineEntry]) -> Result<(), CliError> {
    let Some(start) = entries.first().map(TimelineEntry::at) else { return Ok(()) };
    let lines: Vec<_> =
        entries.iter().map(|entry| (entry, TimelineLine::from_entry(entry, screen.now))).collect();
    let name_width = |line: &TimelineLine| Text::from(&line.name).width();
    let max_name = lines.iter().map(|(entry, line)| 2 * depth(entry) + name_width(line)).max();
    let max_name = max_name.unwrap_or_default();
    let duration_width = |line: &TimelineLine| Text::from(&line.duration).width();
    let max_duration = lines.iter().map(|(_, line)| duration_width(line)).max().unwrap_or(0);
    let mut day = String::new();
    for (entry, line) in lines {
        let time = entry.at().to_string();
        if time[..10] != day {
            time[..10].clone_into(&mut day);
            screen.line(screen.paint(Tone::Faint, &format!("{day} UTC")))?;
        }
        let since = format!("+{}", span(entry.at().millis() - start.millis()));
        let indent = 2 * depth(entry);
        let head = Text::from(&format!("{} {since:>9}  ", &time[11..23]));
        let columns = head.width() + 2 + max_name + 2 + max_duration + 2;
        let available = screen.width.map(|width| width.saturating_sub(columns));
        let is_failed_state =
            matches!(entry, TimelineEntry::State { .. }) && line.tone == Tone::Bad;
        let tone = if is_failed_state { Tone::Bad } else { Tone::Plain };
        let text = screen
            .paint(Tone::Faint, head)
            .gap(indent)
            .then(screen.paint(line.tone, line.symbol))
            .then(" ")
            .then(screen.paint(line.tone, &line.name))
            .gap(max_name - indent - name_width(&line) + 2 + max_duration - duration_width(&line))
            .then(&line.duration)
            .gap(2);
        // On a narrow terminal, a text that does not fit beside the line is printed below it.
        let is_long = available
            .is_some_and(|width| width < MIN_TEXT && Text::from(&line.details).width() > width);
        let (gap, width) = if is_long {
            (DETAIL_INDENT, screen.width.map(|width| width.saturating_sub(DETAIL_INDENT)))
        } else {
            (columns, available)
        };
        let mut details = wrap(&line.details, width).into_iter();
        let first = if is_long { None } else { details.next() };
        screen.line(match first {
            Some(first) => text.then(screen.paint(tone, &first)),
            None => text,
        })?;
        for details in details {
            screen.line(Text::default().gap(gap).then(screen.paint(tone, &details)))?;
        }
    }
    Ok(())
}
