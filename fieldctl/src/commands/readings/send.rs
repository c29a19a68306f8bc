//! The command `fieldctl readings send`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    path::PathBuf,
};

use clap::Args;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::{Value, json, value::RawValue};

use crate::{
    api::{ApiResponse, Call},
    commands::json_file,
    error::{CliError, Exit, field_problem},
    output::{self, Progress, Screen, Tone},
    render::{Table, counted, plain},
    stack::Stack,
};

/// The maximum number of bundles in one call.
const MAX_BUNDLES: usize = 500;
/// The maximum size of a call's body, in bytes.
const MAX_CALL_BYTES: usize = 4 << 20;

/// The options of the command.
#[derive(Args, Debug)]
pub struct Options {
    /// The JSON files, each with a bundle or a list of bundles, as described in docs/integrating.md; - for standard
    /// input.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Write the bundles that were refused, completely or in part, to this new file. Correct them there and send it.
    #[arg(long, value_name = "FILE")]
    refused: Option<PathBuf>,
}

/// A file that could be read.
struct BundleFile {
    name: String,
    /// The texts of its bundles, as they are in the file.
    bundles: Vec<Box<RawValue>>,
}

impl BundleFile {
    fn read(name: &str) -> Result<Self, CliError> {
        let text: Box<RawValue> = json_file(name)?;
        let bundles = if text.get().starts_with('[') {
            serde_json::from_str(text.get()).map_err(|error| {
                CliError::usage(format!("{name} is not a list of bundles: {error}"))
            })?
        } else {
            vec![text]
        };
        if bundles.is_empty() {
            return Err(CliError::usage(format!("{name} contains no bundles")));
        }
        Ok(Self { name: name.to_owned(), bundles })
    }
}

/// The parts of a bundle that are needed to count what was accepted. A bundle of another form is read as an empty one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Outline {
    bundle_id: String,
    series: Vec<SeriesOutline>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SeriesOutline {
    samples: Vec<IgnoredAny>,
}

impl Outline {
    fn of(bundle: &RawValue) -> Self {
        serde_json::from_str(bundle.get()).unwrap_or_default()
    }

    /// Returns the number of samples in the series that were not refused.
    fn samples_without(&self, refused: &BTreeSet<usize>) -> usize {
        let series = self.series.iter().enumerate().filter(|(index, _)| !refused.contains(index));
        series.map(|(_, series)| series.samples.len()).sum()
    }
}

/// Splits the bundles into ranges. The bundles of a range fit into one call.
fn split_into_calls(bundles: &[Box<RawValue>]) -> VecDeque<Range<usize>> {
    let mut calls: VecDeque<Range<usize>> = VecDeque::new();
    let mut bytes = 0;
    for (index, bundle) in bundles.iter().enumerate() {
        // A comma or a bracket follows each bundle.
        let more = bundle.get().len() + 1;
        match calls.back_mut() {
            Some(call) if call.len() < MAX_BUNDLES && bytes + more <= MAX_CALL_BYTES => {
                call.end += 1;
                bytes += more;
            }
            _ => {
                calls.push_back(index..index + 1);
                bytes = 1 + more;
            }
        }
    }
    calls
}

/// Returns the bundles as a JSON list.
fn list<'a>(bundles: impl Iterator<Item = &'a RawValue>, separator: &str) -> String {
    format!("[{}]", bundles.map(RawValue::get).collect::<Vec<_>>().join(separator))
}

/// Returns the index at the beginning of a path, such as 3 in `[3].siteId`, and the rest of the path.
fn leading_index(path: &str) -> Option<(usize, &str)> {
    let (index, rest) = path.strip_prefix('[')?.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// Returns the path of a field in the file. `field` is the path in a call whose first bundle is the file's bundle `first`.
/// Text after the path stays.
fn path_in_file(field: &str, first: usize) -> String {
    match leading_index(field) {
        Some((index, rest)) => format!("[{}]{rest}", first + index),
        None => field.to_owned(),
    }
}

/// A part of a call that the API refused.
#[derive(Clone, Debug, PartialEq)]
struct Refusal {
    /// The index of its bundle in the call. `None` if the API names no bundle.
    bundle: Option<usize>,
    /// The index of its series in the bundle. `None` if the API names no series, because it refused the whole bundle.
    series: Option<usize>,
    /// The path in the call.
    field: String,
    reason: String,
    message: String,
}

impl Refusal {
    /// Reads an entry of a response. `kind` is the reason of an entry that has none.
    fn read(entry: &Value, kind: &str) -> Self {
        let text = |name: &str| entry[name].as_str();
        let field = text("field").unwrap_or_default();
        let place = leading_index(field);
        let series = place.and_then(|(_, rest)| leading_index(rest.strip_prefix(".series")?));
        Self {
            bundle: place.map(|(bundle, _)| bundle),
            series: series.map(|(series, _)| series),
            field: field.to_owned(),
            reason: text("reason").unwrap_or(kind).to_owned(),
            message: text("message").unwrap_or_default().to_owned(),
        }
    }
}

/// What the API did with a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Accepted,
    /// At least one of its series was refused, and at least one was accepted.
    AcceptedInPart,
    Refused,
    /// The response does not say.
    Unknown,
}

/// The response to a call, bundle by bundle.
#[derive(Debug, PartialEq)]
struct Verdict {
    outcomes: Vec<Outcome>,
    refusals: Vec<Refusal>,
}

impl Verdict {
    /// Reads a response. `ids` are the ids of the bundles in the call.
    fn read(response: &ApiResponse, ids: &[&str]) -> Self {
        let ApiResponse { status, body, .. } = response;
        // The `errors` of any other status are no refusals. A 503 has the refusals in `refused`.
        let name = if is_verdict(*status) { "errors" } else { "refused" };
        let kind = body["type"].as_str().and_then(|kind| kind.rsplit(':').next());
        let entries = body[name].as_array().into_iter().flatten();
        let mut refusals: Vec<_> =
            entries.map(|entry| Refusal::read(entry, kind.unwrap_or("-"))).collect();
        // In a call with one bundle, a refusal that names no bundle is about that bundle.
        for refusal in refusals.iter_mut().filter(|it| ids.len() == 1 && it.bundle.is_none()) {
            (refusal.bundle, refusal.field) = (Some(0), "[0]".to_owned());
        }
        let accepted = body["bundles"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let outcomes = outcomes(ids, accepted, &refusals);
        Self { outcomes, refusals }
    }

    /// Returns whether the response says what happened with each bundle. The API lists a limited number of refusals. If
    /// there are more, the last entry of the list names no bundle.
    fn is_complete(&self) -> bool {
        !self.outcomes.contains(&Outcome::Unknown)
            && self.refusals.iter().all(|refusal| refusal.bundle.is_some())
    }

    /// Counts the bundle of a call with one bundle as refused, if the response does not say what happened with it.
    fn refuse_unknown(&mut self, response: &ApiResponse) {
        if self.outcomes == [Outcome::Unknown] {
            self.outcomes = vec![Outcome::Refused];
            let message = response.refusal().message;
            let (field, reason) = ("[0]".to_owned(), "-".to_owned());
            self.refusals.push(Refusal { bundle: Some(0), series: None, field, reason, message });
        }
    }

    /// Returns the series of a bundle that were refused. Returns `None` if they are not known.
    fn refused_series(&self, bundle: usize) -> Option<BTreeSet<usize>> {
        let refusals = self.refusals.iter().filter(|refusal| refusal.bundle == Some(bundle));
        refusals.map(|refusal| refusal.series).collect()
    }
}

/// Returns whether a response of that status says what happened with each bundle. After any other status, the next call
/// would fail, too.
fn is_verdict(status: u16) -> bool {
    matches!(status, 200..300 | 400 | 410 | 413)
}

/// Returns what happened with each bundle of a call. A call may have the same id for bundles of several sites, so an
/// accepted id first counts for a bundle without a refusal.
fn outcomes<'a>(
    ids: &[&str],
    accepted: impl Iterator<Item = &'a str>,
    refusals: &[Refusal],
) -> Vec<Outcome> {
    let mut remaining: HashMap<&str, usize> = HashMap::new();
    for id in accepted {
        *remaining.entry(id).or_default() += 1;
    }
    let refused: BTreeSet<_> = refusals.iter().filter_map(|refusal| refusal.bundle).collect();
    let mut outcomes = vec![Outcome::Unknown; ids.len()];
    for is_refused in [false, true] {
        for (index, id) in ids.iter().enumerate() {
            if refused.contains(&index) != is_refused {
                continue;
            }
            let count = remaining.get_mut(id).filter(|count| **count > 0);
            let is_accepted = count.map(|count| *count -= 1).is_some();
            outcomes[index] = match (is_accepted, is_refused) {
                (true, false) => Outcome::Accepted,
                (true, true) => Outcome::AcceptedInPart,
                (false, true) => Outcome::Refused,
                (false, false) => Outcome::Unknown,
            };
        }
    }
    outcomes
}

/// The counts of a file, or of all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counts {
    /// The bundles in the file.
    bundles: usize,
    /// The bundles that were accepted, completely or in part.
    accepted: usize,
    /// The bundles that were accepted in part. They are included in `accepted`.
    accepted_in_part: usize,
    /// The bundles that were refused completely.
    refused: usize,
    /// The samples that were accepted. Samples of a bundle that was accepted in part count only if the API names the
    /// series that it refused.
    samples: usize,
}

impl Counts {
    /// Returns the number of bundles of which it is not known whether they were accepted. Most of them were not sent.
    fn left(&self) -> usize {
        self.bundles - self.accepted - self.refused
    }

    fn add(&mut self, other: Self) {
        self.bundles += other.bundles;
        self.accepted += other.accepted;
        self.accepted_in_part += other.accepted_in_part;
        self.refused += other.refused;
        self.samples += other.samples;
    }

    fn json(&self) -> Value {
        let mut counts = json!(self);
        counts["left"] = self.left().into();
        counts
    }

    fn row(&self, name: &str) -> Vec<crate::render::Cell> {
        let count =
            |count: usize, tone| (count.to_string(), if count > 0 { tone } else { Tone::Faint });
        vec![
            plain(name),
            plain(self.bundles.to_string()),
            count(self.accepted, Tone::Good),
            count(self.accepted_in_part, Tone::Warn),
            count(self.refused, Tone::Bad),
            count(self.left(), Tone::Warn),
            plain(self.samples.to_string()),
        ]
    }
}

/// A run of the command.
struct Run<'a> {
    stack: &'a Stack,
    screen: &'a mut Screen,
    progress: Progress,
    table: Table,
    /// The refusals, as `--json` shows them.
    refusals: Vec<Value>,
    /// The bundles that were refused, completely or in part.
    refused: Vec<&'a RawValue>,
}

impl<'a> Run<'a> {
    /// Sends the bundles of a file and counts what the API did with them. Returns an error if no other call can succeed
    /// either.
    async fn send(&mut self, file: &'a BundleFile, counts: &mut Counts) -> Result<(), CliError> {
        let mut calls = split_into_calls(&file.bundles);
        while let Some(call) = calls.pop_front() {
            let bundles = &file.bundles[call.clone()];
            let request = Call::post("/readings", list(bundles.iter().map(AsRef::as_ref), ","));
            let response = tokio::select! {
                response = self.stack.answer(&request) => response?,
                _ = tokio::signal::ctrl_c() => {
                    return Err(CliError::new(Exit::Failed, "interrupted by Ctrl-C"));
                }
            };
            let outlines: Vec<_> = bundles.iter().map(|bundle| Outline::of(bundle)).collect();
            let ids: Vec<_> = outlines.iter().map(|outline| outline.bundle_id.as_str()).collect();
            let mut verdict = Verdict::read(&response, &ids);
            let is_verdict = is_verdict(response.status);
            if is_verdict && !verdict.is_complete() && call.len() > 1 {
                // The responses to the two halves of the call name the missing refusals. Sending a bundle again that
                // was accepted changes nothing.
                let middle = call.start.midpoint(call.end);
                calls.push_front(middle..call.end);
                calls.push_front(call.start..middle);
                continue;
            }
            if is_verdict {
                verdict.refuse_unknown(&response);
            }
            self.count(&verdict, bundles, &outlines, counts);
            // The run stops at a closed pipe, because nobody would see what else is refused.
            self.show(&verdict, file, call.start)
                .map_err(|_| CliError::new(Exit::Failed, "the output can't be written"))?;
            self.progress.steps(call.len());
            if !is_verdict {
                let entries = response.body["errors"].as_array().into_iter().flatten();
                let details = entries.map(|entry| path_in_file(&field_problem(entry), call.start));
                let details = details.map(|detail| format!("{} {detail}", file.name)).collect();
                return Err(CliError { details, ..response.refusal() });
            }
        }
        Ok(())
    }

    fn count(
        &mut self,
        verdict: &Verdict,
        bundles: &'a [Box<RawValue>],
        outlines: &[Outline],
        counts: &mut Counts,
    ) {
        for (index, outcome) in verdict.outcomes.iter().enumerate() {
            match outcome {
                Outcome::Accepted | Outcome::AcceptedInPart => counts.accepted += 1,
                Outcome::Refused => counts.refused += 1,
                Outcome::Unknown => continue,
            }
            if *outcome == Outcome::AcceptedInPart {
                counts.accepted_in_part += 1;
            }
            if *outcome != Outcome::Accepted {
                self.refused.push(&bundles[index]);
            }
            if *outcome != Outcome::Refused
                && let Some(refused) = verdict.refused_series(index)
            {
                counts.samples += outlines[index].samples_without(&refused);
            }
        }
    }

    /// Prints the refusals of a call. `first` is the index of its first bundle in the file.
    fn show(&mut self, verdict: &Verdict, file: &BundleFile, first: usize) -> Result<(), CliError> {
        let mut rows = Vec::new();
        for Refusal { field, reason, message, .. } in &verdict.refusals {
            let field = path_in_file(field, first);
            rows.push(vec![
                plain(&file.name),
                plain(&field),
                (reason.clone(), Tone::Bad),
                plain(message),
            ]);
            self.refusals.push(
                json!({ "file": file.name, "field": field, "reason": reason, "message": message }),
            );
        }
        if self.screen.json {
            return Ok(());
        }
        let Self { progress, table, screen, .. } = self;
        progress.suspend(|| table.page(screen, &rows).and_then(|()| screen.flush()))
    }
}

/// A new file for the bundles that are refused.
struct RefusedFile {
    path: PathBuf,
    file: File,
}

impl RefusedFile {
    fn create(path: PathBuf) -> Result<Self, CliError> {
        match File::create_new(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(CliError::usage(format!("{} exists already", path.display()))
                    .advise("fieldctl does not overwrite it: choose another file, or remove it"))
            }
            Err(error) => Err(unwritable(&path.display().to_string(), &error)),
        }
    }

    /// Writes the bundles. Removes the file if there are none.
    fn write(mut self, bundles: &[&RawValue]) -> Result<(), CliError> {
        let written = if bundles.is_empty() {
            fs::remove_file(&self.path)
        } else {
            writeln!(self.file, "{}", list(bundles.iter().copied(), ",\n"))
        };
        written.map_err(|error| unwritable(&self.path.display().to_string(), &error))
    }
}

fn unwritable(path: &str, error: &io::Error) -> CliError {
    CliError::usage(format!("{path} can't be written: {error}"))
}

/// Reads the files, sends their bundles and shows what the API did with them.
pub async fn run(stack: &Stack, screen: &mut Screen, options: Options) -> Result<Exit, CliError> {
    let mut unreadable = Vec::new();
    let mut files = Vec::new();
    for name in &options.files {
        match BundleFile::read(name) {
            Ok(file) => files.push(file),
            Err(error) => {
                output::print_error(&error);
                unreadable.push(json!({ "file": name, "problem": error.message }));
            }
        }
    }
    let output_path = options.refused.as_ref().map(|path| path.display().to_string());
    let refused_file = options.refused.map(RefusedFile::create).transpose()?;

    let bundles = files.iter().map(|file| file.bundles.len()).sum();
    let mut run = Run {
        stack,
        screen,
        progress: Progress::bar(bundles, "Ctrl-C stops, what was accepted stays"),
        table: Table::new(["FILE", "FIELD", "REASON", "MESSAGE"]),
        refusals: Vec::new(),
        refused: Vec::new(),
    };
    let mut stopped = None;
    let (mut total, mut counted) = (Counts::default(), Vec::new());
    for file in &files {
        let mut counts = Counts { bundles: file.bundles.len(), ..Counts::default() };
        if stopped.is_none() {
            stopped = run.send(file, &mut counts).await.err();
        }
        total.add(counts);
        counted.push((file.name.as_str(), counts));
    }
    run.progress.clear();
    let Run { screen, refusals, refused, .. } = run;

    let written = refused_file.map_or(Ok(()), |file| file.write(&refused));
    if screen.json {
        let mut document = total.json();
        let files = counted.iter().map(|(name, counts)| {
            let mut file = counts.json();
            file["file"] = (*name).into();
            file
        });
        document["files"] = files.chain(unreadable.iter().cloned()).collect();
        document["errors"] = refusals.into();
        screen.document(&document)?;
    } else {
        show_counts(screen, &counted, total, !refused.is_empty())?;
    }
    if let Some(error) = stopped {
        // The command ends with the error that stopped it, so the other one is printed here.
        if let Err(unwritten) = &written {
            output::print_error(unwritten);
        }
        let advice = error.advice.clone().unwrap_or_default();
        return Err(error.advise(format!(
            "It is safe to send the same files again: a bundle is stored once. {advice}"
        )));
    }
    written?;
    if !refused.is_empty() {
        return Err(refused_error(total, output_path.as_deref()));
    }
    Ok(if unreadable.is_empty() { Exit::Done } else { Exit::Usage })
}

/// Prints the table with a line for each file, and the sum if there are several.
fn show_counts(
    screen: &mut Screen,
    counted: &[(&str, Counts)],
    total: Counts,
    after_refusals: bool,
) -> Result<(), CliError> {
    let mut rows: Vec<_> = counted.iter().map(|(name, counts)| counts.row(name)).collect();
    if rows.len() > 1 {
        rows.push(total.row("total"));
    }
    if after_refusals {
        screen.line("")?;
    }
    Table::new(["FILE", "BUNDLES", "ACCEPTED", "IN PART", "REFUSED", "LEFT", "SAMPLES"])
        .page(screen, &rows)
}

/// Returns the error for a run that sent everything, and of which the API refused something.
fn refused_error(total: Counts, refused_file: Option<&str>) -> CliError {
    let Counts { bundles, accepted_in_part, refused, .. } = total;
    let bundles = counted(bundles, "bundle", "bundles");
    let parts = counted(accepted_in_part, "other", "others");
    let message = format!("the API refused {refused} of {bundles}, and parts of {parts}");
    let what = match refused_file {
        Some(file) => format!("correct the bundles in {file} and send it"),
        None => {
            "correct them and send them again; --refused <file> writes them to a file".to_owned()
        }
    };
    CliError::new(Exit::Refused, message)
        .advise(format!("{what}. Keep the bundle ids: what was accepted is not stored twice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).expect("JSON")
    }

    #[test]
    fn a_call_is_not_larger_than_the_api_accepts() {
        let calls = split_into_calls(&vec![raw("1"); 1001]);
        assert_eq!(calls, [0..500, 500..1000, 1000..1001]);
        let text = |character: &str, count: usize| raw(&format!("{:?}", character.repeat(count)));
        let full = [text("x", (3 << 20) - 3), text("y", (1 << 20) - 4), text("z", 1)];
        let calls = split_into_calls(&full);
        assert_eq!(calls, [0..2, 2..3]);
        assert_eq!(list(full[..2].iter().map(AsRef::as_ref), ",").len(), MAX_CALL_BYTES);
    }

    #[test]
    fn a_path_in_a_call_becomes_a_path_in_the_file() {
        for (field, expected) in [
            ("[2].series[0].samples[1]", "[502].series[0].samples[1]"),
            ("[2]", "[502]"),
            ("body", "body"),
            ("[x].siteId", "[x].siteId"),
        ] {
            assert_eq!(path_in_file(field, 500), expected);
        }
    }

    fn refusal(field: &str) -> Refusal {
        Refusal::read(&json!({ "field": field, "message": "m", "reason": "InvalidValue" }), "-")
    }

    #[test]
    fn an_accepted_id_counts_for_the_bundle_without_a_refusal() {
        use Outcome::{Accepted, AcceptedInPart, Refused, Unknown};

        let ids = ["a", "a", "b", "c", "d"];
        let refusals = [refusal("[0].siteId"), refusal("[2].series[1].samples[0]")];
        let accepted = ["a", "b", "c"].into_iter();
        assert_eq!(
            outcomes(&ids, accepted, &refusals),
            [Refused, Accepted, AcceptedInPart, Accepted, Unknown]
        );
    }

    #[test]
    fn samples_of_refused_series_are_not_counted() {
        let outline = Outline::of(&raw(
            r#"{"bundleId": "b", "series": [{"samples": [[1, 2], [3, 4]]}, {"samples": [[5, 6]]}]}"#,
        ));
        let verdict = |fields: &[&str]| Verdict {
            outcomes: vec![Outcome::AcceptedInPart],
            refusals: fields.iter().map(|field| refusal(field)).collect(),
        };
        let refused = verdict(&["[0].series[0].samples[1]", "[0].series[0].sensorId"]);
        let refused = refused.refused_series(0).expect("named series");
        assert_eq!(outline.samples_without(&refused), 1);
        assert_eq!(verdict(&["[0]"]).refused_series(0), None, "no series is named");
    }
}
