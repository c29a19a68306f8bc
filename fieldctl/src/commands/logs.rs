//! The command `fieldctl logs`.

use std::{collections::HashSet, time::Duration};

use aws_sdk_cloudwatchlogs::{
    Client, operation::filter_log_events::FilterLogEventsError, types::FilteredLogEvent,
};
use clap::Args;
use contracts::{Timestamp, names};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    commands::POLL_INTERVAL,
    error::{CliError, Exit, aws},
    output::{Screen, Text, Tone},
    render::{mask_secrets, parse_time, wrap},
    resolve,
    stack::Stack,
};

/// The maximum number of concurrent searches of log groups.
const MAX_CONCURRENT_SEARCHES: usize = 4;

/// The maximum delay between writing a line and its arrival in CloudWatch Logs.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// The prefixes of lines that Lambda writes for each invocation. They are not shown.
const PLATFORM_LINES: [&str; 4] = ["START ", "END ", "REPORT ", "INIT_START "];

/// Shows the logs of the functions and state machines in chronological order.
#[derive(Args, Debug)]
pub struct Logs {
    /// Only lines about this site: its id, its onboarding's id, the first digits of one of them, or its name.
    site: Option<String>,
    /// Only lines of this function, for example store-readings. May be given more than once.
    #[arg(long, value_name = "NAME")]
    function: Vec<String>,
    /// Only warnings and errors.
    #[arg(long)]
    errors: bool,
    /// Only lines since this time: RFC 3339, or an age such as 15m.
    #[arg(long, value_parser = parse_time, default_value = "1h")]
    since: Timestamp,
    /// The maximum number of lines. The newest are shown.
    #[arg(long, default_value_t = 200)]
    limit: usize,
    /// Also show new lines as they are written, until Ctrl-C.
    #[arg(long)]
    follow: bool,
    /// With --follow, stop after this number of seconds.
    #[arg(long, requires = "follow")]
    seconds: Option<u64>,
}

/// A log line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogLine {
    /// When it was written.
    pub at: Timestamp,
    /// The function, or the other resource to which the log group belongs.
    pub function: String,
    /// `ERROR`, `WARN`, `INFO`, `DEBUG` or `TRACE`; `PLATFORM` for a line of Lambda itself.
    pub level: String,
    /// The message.
    pub message: String,
    /// The other fields.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
}

impl LogLine {
    /// Parses a line of CloudWatch Logs. Returns `None` for metrics, and for lines that Lambda writes for each
    /// invocation.
    fn parse(function: &str, at: Timestamp, text: &str) -> Option<Self> {
        let text = text.trim_end();
        let line = |level: &str, message: &str, fields| {
            let (function, level, message) =
                (function.to_owned(), level.to_owned(), message.to_owned());
            Some(Self { at, function, level, message, fields })
        };
        let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(text) else {
            let is_platform_line = PLATFORM_LINES.iter().any(|start| text.starts_with(start));
            return if is_platform_line { None } else { line("PLATFORM", text, Map::new()) };
        };
        if fields.contains_key("_aws") {
            return None;
        }
        fields.remove("timestamp");
        let level = fields.remove("level");
        let message = fields.remove("message");
        if let Some(Value::Object(span)) = fields.remove("span") {
            fields.extend(span.into_iter().filter(|(name, _)| name != "name"));
        }
        let mut fields = Value::Object(fields);
        mask_secrets(&mut fields);
        let Value::Object(fields) = fields else { return None };
        line(
            level.as_ref().and_then(Value::as_str).unwrap_or("INFO"),
            message.as_ref().and_then(Value::as_str).unwrap_or_default(),
            fields,
        )
    }

    /// Returns whether `--errors` selects the line.
    fn is_warning_or_error(&self) -> bool {
        matches!(self.level.as_str(), "ERROR" | "WARN" | "PLATFORM")
    }

    fn tone(&self) -> Tone {
        match self.level.as_str() {
            "ERROR" => Tone::Bad,
            "WARN" | "PLATFORM" => Tone::Warn,
            _ => Tone::Plain,
        }
    }
}

/// The log groups to search, and the filters of their lines.
struct LogSearch {
    client: Client,
    /// The names of the functions, each with its log group.
    groups: Vec<(String, String)>,
    /// A line must contain one of these ids. If empty, every line is accepted.
    ids: Vec<String>,
    errors: bool,
}

impl Logs {
    /// Runs the command.
    pub async fn run(self, stack: &Stack, screen: &mut Screen) -> Result<Exit, CliError> {
        let ids = match &self.site {
            None => Vec::new(),
            Some(site) => {
                let found = resolve::site_onboarding(stack, site).await?;
                vec![found.onboarding.to_string(), found.site.to_string()]
            }
        };
        let client = Client::new(stack.config());
        let search = LogSearch {
            groups: groups(&client, stack, &self.function).await?,
            client,
            ids,
            errors: self.errors,
        };
        let mut seen = HashSet::new();
        let mut lines = search.read(self.since, &mut seen).await?;
        let hidden = lines.len().saturating_sub(self.limit);
        lines.drain(..hidden);
        if hidden > 0 && !screen.json {
            let text = format!(
                "{hidden} older lines are not shown. Use --limit {} to show them.",
                hidden + self.limit
            );
            screen.line(screen.paint(Tone::Faint, &text))?;
        }
        show(screen, &lines)?;
        if !self.follow {
            if lines.is_empty() && !screen.json {
                screen.line(&self.nothing_found(search.groups.len()))?;
            }
            return Ok(Exit::Done);
        }
        let ends =
            self.seconds.map(|seconds| tokio::time::Instant::now() + Duration::from_secs(seconds));
        while ends.is_none_or(|ends| tokio::time::Instant::now() < ends) {
            screen.flush()?;
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    break;
                }
            }
            let late = i64::try_from(MAX_DELAY.as_millis()).unwrap_or(i64::MAX);
            let since = Timestamp::now().plus_millis(-late).max(self.since);
            show(screen, &search.read(since, &mut seen).await?)?;
        }
        Ok(Exit::Done)
    }

    /// Returns the message for a search that found nothing.
    fn nothing_found(&self, groups: usize) -> String {
        let what = if self.errors { "warnings or errors" } else { "lines" };
        let about = self.site.as_ref().map(|site| format!(" about {site}")).unwrap_or_default();
        format!("There are no {what}{about} since {} in {groups} log groups.", self.since)
    }
}

/// Returns the log groups of the environment, or those of the named functions.
async fn groups(
    client: &Client,
    stack: &Stack,
    functions: &[String],
) -> Result<Vec<(String, String)>, CliError> {
    let mut groups: Vec<(String, String)> = Vec::new();
    for prefix in names::log_groups(stack.name()) {
        let call = client.describe_log_groups().log_group_name_prefix(&prefix);
        let mut found = call.into_paginator().items().send();
        while let Some(group) = found.next().await {
            let group = group.map_err(aws("the log groups can't be listed"))?;
            if let Some(name) = group.log_group_name() {
                groups.push((name.rsplit('/').next().unwrap_or(name).to_owned(), name.to_owned()));
            }
        }
    }
    groups.sort();
    if groups.is_empty() {
        let stack = stack.name();
        return Err(CliError::not_found(format!("the environment {stack} has no log groups"))
            .advise("check that it is deployed: fieldctl status"));
    }
    for function in functions {
        if !groups.iter().any(|(name, _)| is_function_name(name, function)) {
            let names: Vec<_> = groups.iter().map(|(name, _)| name.as_str()).collect();
            return Err(CliError::not_found(format!(
                "there is no log group of a function {function:?}"
            ))
            .advise(format!("the log groups are those of {}", names.join(", "))));
        }
    }
    groups.retain(|(name, _)| {
        functions.is_empty() || functions.iter().any(|it| is_function_name(name, it))
    });
    Ok(groups)
}

/// Returns whether `given` means the function `name`. It may be written as `store-readings`, or as in the template:
/// `StoreReadings`.
fn is_function_name(name: &str, given: &str) -> bool {
    let plain = |text: &str| text.to_lowercase().replace('-', "");
    plain(name) == plain(given) || plain(name) == plain(given).trim_end_matches("function")
}

impl LogSearch {
    /// Returns the lines since that time that were not read before, in chronological order.
    async fn read(
        &self,
        since: Timestamp,
        seen: &mut HashSet<String>,
    ) -> Result<Vec<LogLine>, CliError> {
        // There is one search per id, because not every emulator implements the filter pattern for "any of these".
        let ids: Vec<_> =
            if self.ids.is_empty() { vec![None] } else { self.ids.iter().map(Some).collect() };
        let searches = self.groups.iter().flat_map(|group| ids.iter().map(move |id| (group, *id)));
        let found: Vec<(&str, Vec<FilteredLogEvent>)> = stream::iter(searches)
            .map(|((name, group), id)| async move {
                Ok::<_, CliError>((name.as_str(), self.search_group(group, id, since).await?))
            })
            .buffered(MAX_CONCURRENT_SEARCHES)
            .try_collect()
            .await?;
        let mut lines = Vec::new();
        for (function, events) in found {
            for event in events {
                let (Some(at), Some(text)) = (event.timestamp(), event.message()) else { continue };
                let id = event
                    .event_id()
                    .map_or_else(|| format!("{function} {at} {text}"), str::to_owned);
                let about =
                    self.ids.is_empty() || self.ids.iter().any(|id| text.contains(id.as_str()));
                if about && seen.insert(id) {
                    lines.extend(LogLine::parse(function, Timestamp::from_millis(at), text));
                }
            }
        }
        lines.retain(|line| !self.errors || line.is_warning_or_error());
        lines.sort_by_key(|line| line.at);
        Ok(lines)
    }

    async fn search_group(
        &self,
        group: &str,
        id: Option<&String>,
        since: Timestamp,
    ) -> Result<Vec<FilteredLogEvent>, CliError> {
        let call = self.client.filter_log_events().log_group_name(group).start_time(since.millis());
        let call = call.set_filter_pattern(id.map(|id| format!("\"{id}\"")));
        let mut pages = call.into_paginator().send();
        let mut events = Vec::new();
        while let Some(page) = pages.next().await {
            match page {
                Ok(page) => events.extend(page.events.unwrap_or_default()),
                // The stack creates the log group, but it may be deleted by hand.
                Err(error)
                    if error
                        .as_service_error()
                        .is_some_and(FilterLogEventsError::is_resource_not_found_exception) =>
                {
                    break;
                }
                Err(error) => {
                    return Err(aws(&format!("the log group {group} can't be read"))(error));
                }
            }
        }
        Ok(events)
    }
}

fn show(screen: &mut Screen, lines: &[LogLine]) -> Result<(), CliError> {
    const INDENT: usize = 4;
    for line in lines {
        if screen.json {
            screen.entry(line)?;
            continue;
        }
        let head = format!("{} {:5} {}", &line.at.to_string()[11..23], line.level, line.function);
        let fields = line.fields.iter().map(|(name, value)| match value {
            Value::String(text) => format!("{name}={text}"),
            value => format!("{name}={value}"),
        });
        let text =
            std::iter::once(line.message.clone()).chain(fields).collect::<Vec<_>>().join(" ");
        screen.line(screen.paint(line.tone(), &head))?;
        for part in wrap(&text, screen.width.map(|width| width.saturating_sub(INDENT))) {
            screen.line(Text::default().gap(INDENT).then(&part))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Option<LogLine> {
        LogLine::parse("store-readings", Timestamp::from_millis(0), text)
    }

    #[test]
    fn a_line_is_parsed_into_level_message_and_fields() {
        let text = r#"{"timestamp":"t","level":"WARN","message":"record failed","reason":"r",
            "span":{"correlationId":"c","name":"invocation"}}"#;
        let line = line(text).expect("a line");
        assert_eq!((line.level.as_str(), line.message.as_str()), ("WARN", "record failed"));
        assert_eq!(line.fields["correlationId"], "c");
        assert_eq!(line.fields.len(), 2, "{:?}", line.fields);
        assert!(line.is_warning_or_error());
    }

    #[test]
    fn metrics_and_lambdas_own_lines_are_left_out_except_its_errors() {
        for text in ["START RequestId: 1", "REPORT RequestId: 1", r#"{"_aws":{},"Errors":1}"#] {
            assert_eq!(line(text), None, "{text}");
        }
        let error =
            line("2026-01-01T00:00:00Z 1 Task timed out after 20.00 seconds").expect("a line");
        assert!(error.is_warning_or_error());
    }

    #[test]
    fn functions_are_found_by_their_names_in_the_docs_or_in_the_template() {
        for given in ["store-readings", "StoreReadings", "StoreReadingsFunction"] {
            assert!(is_function_name("store-readings", given), "{given}");
        }
        assert!(!is_function_name("store-readings", "readings"));
    }
}
