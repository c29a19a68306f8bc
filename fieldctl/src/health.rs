//! Computes the health of a site: when its sensors last sent, what is missing, and what was refused or quarantined.
//!
//! The health is computed from data that other functions store: the arrival times in the readings table, the refusals
//! that accept-readings counts in the refusals table, and the bundles that store-readings quarantined, which are rows
//! of the failures table. Data that can't be read is reported as unknown.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{SensorId, SiteId, Timestamp};
use ledger::{ErrorInfo, FailureSummary};
use serde::Serialize;
use series::{Marker, RefusalRow, RowKey, SeriesRow, packing::unpack, replaced};

use crate::{error::Exit, render::ago};

const SECOND_MILLIS: i64 = 1000;
const MINUTE_MILLIS: i64 = 60 * SECOND_MILLIS;
const HOUR_MILLIS: i64 = 60 * MINUTE_MILLIS;
/// The period for completeness, refusals and stale samples.
pub const WINDOW_MILLIS: i64 = 24 * HOUR_MILLIS;
/// The minimum time until a sensor counts as silent, however short its interval is.
const MIN_SILENCE_MILLIS: i64 = 2 * MINUTE_MILLIS;
/// The time after which a sensor with an unknown interval counts as silent.
const ASSUMED_SILENCE_MILLIS: i64 = HOUR_MILLIS;
/// The maximum time between two consecutive arrivals of one upload.
const UPLOAD_MILLIS: i64 = MINUTE_MILLIS;

/// The verdict about a site or a sensor. A site has the verdict of its most serious finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Readings of a site in service could not be read. Or there is no finding, but other data could not be read.
    Unknown,
    /// The site is not `ACTIVE`, so no readings are expected.
    NotInService,
    /// Nothing has ever arrived. A site whose bundles were refused or quarantined has that verdict instead.
    NeverReported,
    /// Nothing has arrived for longer than expected.
    Silent,
    /// Some sensors are silent, others report.
    PartlySilent,
    /// Bundles were refused in the last 24 hours.
    Refused,
    /// Bundles are quarantined as failures.
    Quarantined,
    /// Bundles arrive, but their newest sample is older than 24 hours.
    StaleSamples,
    /// Bundles arrive in time.
    Reporting,
}

/// A problem that needs attention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The site's verdict if this problem is the most serious one.
    pub kind: Verdict,
    /// The problem, in a sentence.
    pub message: String,
    /// What to do next.
    pub next: String,
}

/// A source that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadSource {
    /// The source: `readings`, `refusals` or `failures`.
    pub source: String,
    /// Why it could not be read.
    pub reason: String,
}

/// The stored readings with samples of the last 24 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accepted {
    /// The number of bundles. Each revision of a bundle counts.
    pub bundles: usize,
    /// The number of samples. Samples of the same instant count once, and those that a revision withdrew do not count.
    pub samples: usize,
}

/// A sensor's health. An unknown value is `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorHealth {
    /// The sensor's id.
    pub sensor_id: String,
    /// What the sensor measures.
    pub metric: String,
    /// The unit of the readings.
    pub unit: String,
    /// `REPORTING`, `STALE_SAMPLES`, `SILENT`, `NEVER_REPORTED` or `UNKNOWN`.
    pub verdict: Verdict,
    /// When its last bundle was stored.
    pub last_arrival: Option<Timestamp>,
    /// The time of its newest sample that no revision withdrew.
    pub last_sample: Option<Timestamp>,
    /// The time since the last arrival, in seconds.
    pub gap_seconds: Option<i64>,
    /// The observed interval between bundles, in seconds: the median time between their first samples, or between
    /// uploads if that is longer.
    pub interval_seconds: Option<i64>,
    /// The number of samples of the last 24 hours, divided by the number that the median interval between samples
    /// predicts. From 0 to 1.
    pub completeness: Option<f64>,
    /// The stored readings of the last 24 hours.
    pub accepted: Option<Accepted>,
    /// The number of bundles that were refused in the last 24 hours because of this sensor.
    pub refused: Option<u64>,
    /// The number of open failures of store-readings that name this sensor.
    pub quarantined: Option<usize>,
}

/// Bundles that were refused for the same reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The reason, such as `ClockAhead`.
    pub reason: String,
    /// The field, such as `series[].samples[]`.
    pub field: String,
    /// The sensor of the invalid series, if its id could be read.
    pub sensor_id: Option<SensorId>,
    /// The number of bundles. A bundle counts once for each reason, field and sensor.
    pub count: u64,
    /// When the first bundle was refused.
    pub first_at: Timestamp,
    /// When the last bundle was refused.
    pub last_at: Timestamp,
    /// What was wrong with the last bundle.
    pub example: String,
}

/// A bundle that store-readings quarantined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuarantinedBundle {
    /// The failure's id.
    pub failure_id: String,
    /// Why the bundle was quarantined.
    pub error: ErrorInfo,
    /// When it failed last.
    pub last_at: Timestamp,
}

impl From<&FailureSummary> for QuarantinedBundle {
    fn from(failure: &FailureSummary) -> Self {
        Self {
            failure_id: failure.id.to_string(),
            error: ErrorInfo { affected_ids: None, ..failure.error.clone() },
            last_at: failure.last_at,
        }
    }
}

/// The document of `fieldctl sites health --json`. Its schema is `schemas/sites-health.schema.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SiteHealth {
    /// The site's id.
    pub site_id: SiteId,
    /// The site's name.
    pub name: String,
    /// The site's status, such as `ACTIVE`.
    pub status: String,
    /// When the health was computed.
    pub at: Timestamp,
    /// The verdict of the most serious finding.
    pub verdict: Verdict,
    /// The verdict in a sentence.
    pub summary: String,
    /// The findings, the most serious first. Empty for a site that reports.
    pub findings: Vec<Finding>,
    /// The sources that could not be read.
    pub unknown: Vec<UnreadSource>,
    /// The sensors, in the order of the site.
    pub sensors: Vec<SensorHealth>,
    /// The refusals of the last 24 hours, the last one first. `null` if they could not be read.
    pub refused: Option<Vec<Refusal>>,
    /// The number of refused bundles of the last 24 hours that name no site. They may belong to this site.
    pub refused_without_site: Option<u64>,
    /// The quarantined bundles, the last one first. `null` if they could not be read.
    pub quarantined: Option<Vec<QuarantinedBundle>>,
}

/// A sensor as the API shows it.
#[derive(Clone, Debug)]
pub struct SiteSensor {
    /// The sensor's id.
    pub id: String,
    /// What the sensor measures.
    pub metric: String,
    /// The unit of the readings.
    pub unit: String,
}

/// The stored readings of a sensor.
#[derive(Clone, Debug, Default)]
pub struct StoredReadings {
    /// The newest rows, newest first.
    pub rows: Vec<SeriesRow>,
    /// The ranges that revisions replace.
    pub markers: Vec<Marker>,
}

/// Data, or the reason why it could not be read.
pub type ReadResult<T> = Result<T, String>;

/// The data from which the health is computed.
#[derive(Debug)]
pub struct HealthData {
    /// The site.
    pub site_id: SiteId,
    /// The site's name.
    pub name: String,
    /// The site's status.
    pub status: String,
    /// When the site was activated, if the API says so.
    pub active_since: Option<Timestamp>,
    /// The site's sensors, each with its readings.
    pub sensors: Vec<(SiteSensor, ReadResult<StoredReadings>)>,
    /// The site's refusals.
    pub refusals: ReadResult<Vec<RefusalRow>>,
    /// The refusals of bodies that name no site.
    pub refusals_without_site: ReadResult<Vec<RefusalRow>>,
    /// The site's open failures of store-readings, newest first.
    pub failures: ReadResult<Vec<QuarantinedBundle>>,
}

/// A sensor's activity, computed from its readings.
#[derive(Debug, Default)]
struct SensorActivity {
    last_arrival: Option<i64>,
    last_sample: Option<i64>,
    /// The interval between bundles, in milliseconds.
    interval: Option<i64>,
    accepted: Accepted,
    completeness: Option<f64>,
}

impl SensorActivity {
    fn from_readings(
        StoredReadings { rows, markers }: &StoredReadings,
        now: Timestamp,
        active_since: Option<Timestamp>,
    ) -> ReadResult<Self> {
        let now = now.millis();
        let begin = now - WINDOW_MILLIS;
        // No samples are expected from before the site's activation.
        let expected_from = active_since.map_or(begin, |at| at.millis().max(begin));
        let (mut starts, mut instants) = (Vec::new(), Vec::new());
        let mut bundles = BTreeSet::new();
        for row in rows {
            let bad = |what: &str| format!("row {:?} can't be read: {what}", row.row);
            let key = RowKey::parse(&row.row).ok_or_else(|| bad("its key has no time"))?;
            starts.push(key.start.millis());
            let samples = unpack(&row.samples).map_err(|error| bad(&error.to_string()))?;
            if row.end > begin {
                // A bundle that grew has several rows, but counts once.
                bundles.insert((key.bundle, key.revision));
            }
            let replaced = replaced(markers, key.revision);
            let times = samples.iter().map(|sample| sample.at);
            let times = times.filter(|at| !replaced.iter().any(|range| range.contains(*at)));
            instants.extend(times.map(Timestamp::millis));
        }
        instants.sort_unstable();
        instants.dedup();
        let samples = instants.iter().filter(|at| (begin + 1..=now).contains(*at)).count();
        let accepted = Accepted { bundles: bundles.len(), samples };
        let arrivals = uploads(rows.iter().map(|row| row.stored_at).collect());
        // A logger may upload several bundles at once. Then the interval is the time between uploads.
        let interval = median_step(starts).max(median_step(arrivals));
        let last_sample = instants.last().copied();
        let completeness = median_step(instants).map(|step| {
            #[expect(clippy::cast_precision_loss, reason = "a day has 86,400,000 instants")]
            let (samples, expected) =
                (accepted.samples as f64, (now - expected_from) as f64 / step as f64);
            (samples / expected.max(1.0)).min(1.0)
        });
        Ok(Self {
            last_arrival: rows.iter().map(|row| row.stored_at).max(),
            last_sample,
            interval,
            accepted,
            completeness,
        })
    }

    /// Returns the time without arrivals after which the sensor is silent, in milliseconds.
    fn max_silence_millis(&self) -> i64 {
        self.interval
            .map_or(ASSUMED_SILENCE_MILLIS, |interval| (interval * 3 / 2).max(MIN_SILENCE_MILLIS))
    }

    fn verdict(&self, now: Timestamp) -> Verdict {
        let Some(arrival) = self.last_arrival else { return Verdict::NeverReported };
        let is_old = |sample: i64| now.millis() - sample > WINDOW_MILLIS;
        if now.millis() - arrival > self.max_silence_millis() {
            Verdict::Silent
        } else if self.last_sample.is_some_and(is_old) {
            Verdict::StaleSamples
        } else {
            Verdict::Reporting
        }
    }
}

/// Returns the times at which uploads ended. Arrivals that are close to each other are one upload.
fn uploads(mut arrivals: Vec<i64>) -> Vec<i64> {
    arrivals.sort_unstable();
    let mut uploads: Vec<i64> = Vec::new();
    for arrival in arrivals {
        match uploads.last_mut() {
            Some(last) if arrival - *last <= UPLOAD_MILLIS => *last = arrival,
            _ => uploads.push(arrival),
        }
    }
    uploads
}

/// Returns the median of the steps between times. Returns `None` for fewer than two different times.
fn median_step(mut times: Vec<i64>) -> Option<i64> {
    times.sort_unstable();
    let mut steps: Vec<_> =
        times.windows(2).map(|pair| pair[1] - pair[0]).filter(|step| *step > 0).collect();
    steps.sort_unstable();
    steps.get(steps.len() / 2).copied()
}

impl HealthData {
    /// Computes the health of the site.
    #[must_use]
    pub fn into_health(self, now: Timestamp) -> SiteHealth {
        let mut unknown = Vec::new();
        let mut sensors = Vec::new();
        let refusals = value_or_unknown("refusals", self.refusals, &mut unknown);
        let refusals = refusals.map(|rows| recent_refusals(&rows, now));
        let without_site = value_or_unknown("refusals", self.refusals_without_site, &mut unknown);
        let failures = value_or_unknown("failures", self.failures, &mut unknown);
        for (sensor, readings) in self.sensors {
            let activity = readings.and_then(|readings| {
                SensorActivity::from_readings(&readings, now, self.active_since)
            });
            let activity = activity.map_err(|error| format!("of sensor {}: {error}", sensor.id));
            let activity = value_or_unknown("readings", activity, &mut unknown);
            sensors.push(sensor_health(
                sensor,
                activity.as_ref(),
                refusals.as_deref(),
                failures.as_deref(),
                now,
            ));
        }
        let mut health = SiteHealth {
            site_id: self.site_id,
            name: self.name,
            status: self.status,
            at: now,
            verdict: Verdict::Reporting,
            summary: String::new(),
            findings: Vec::new(),
            unknown,
            sensors,
            refused: refusals,
            refused_without_site: without_site
                .map(|rows| recent_refusals(&rows, now).iter().map(|refusal| refusal.count).sum()),
            quarantined: failures,
        };
        health.evaluate();
        health
    }
}

fn value_or_unknown<T>(
    source: &str,
    read: ReadResult<T>,
    unknown: &mut Vec<UnreadSource>,
) -> Option<T> {
    read.map_err(|error| {
        let unread = UnreadSource { source: source.to_owned(), reason: error };
        if !unknown.contains(&unread) {
            unknown.push(unread);
        }
    })
    .ok()
}

fn sensor_health(
    sensor: SiteSensor,
    activity: Option<&SensorActivity>,
    refusals: Option<&[Refusal]>,
    failures: Option<&[QuarantinedBundle]>,
    now: Timestamp,
) -> SensorHealth {
    let time = |millis: Option<i64>| millis.map(Timestamp::from_millis);
    let is_of_sensor =
        |refusal: &&Refusal| refusal.sensor_id.is_some_and(|id| id.to_string() == sensor.id);
    let names_sensor = |failure: &&QuarantinedBundle| failure.error.message.contains(&sensor.id);
    let last_arrival = activity.and_then(|activity| activity.last_arrival);
    SensorHealth {
        verdict: activity.map_or(Verdict::Unknown, |activity| activity.verdict(now)),
        last_arrival: time(last_arrival),
        last_sample: time(activity.and_then(|activity| activity.last_sample)),
        gap_seconds: last_arrival.map(|at| (now.millis() - at).max(0) / SECOND_MILLIS),
        interval_seconds: activity
            .and_then(|activity| activity.interval)
            .map(|millis| millis / SECOND_MILLIS),
        completeness: activity.and_then(|activity| activity.completeness),
        accepted: activity.map(|activity| activity.accepted),
        refused: refusals
            .map(|all| all.iter().filter(is_of_sensor).map(|refusal| refusal.count).sum()),
        quarantined: failures.map(|all| all.iter().filter(names_sensor).count()),
        sensor_id: sensor.id,
        metric: sensor.metric,
        unit: sensor.unit,
    }
}

/// Returns the refusals of the last 24 hours, the last one first. Rows of several hours are summed.
fn recent_refusals(rows: &[RefusalRow], now: Timestamp) -> Vec<Refusal> {
    let mut refusals = BTreeMap::<_, Refusal>::new();
    let since = now.plus_millis(-WINDOW_MILLIS);
    for row in rows.iter().filter(|row| row.last_at > since) {
        let refusal = Refusal {
            reason: row.reason().to_owned(),
            field: row.field().to_owned(),
            sensor_id: row.sensor(),
            count: row.refused,
            first_at: row.first_at,
            last_at: row.last_at,
            example: row.example.clone(),
        };
        let key = (refusal.reason.clone(), refusal.field.clone(), refusal.sensor_id);
        match refusals.get_mut(&key) {
            Some(sum) => {
                sum.count += refusal.count;
                sum.first_at = sum.first_at.min(refusal.first_at);
                if refusal.last_at > sum.last_at {
                    (sum.last_at, sum.example) = (refusal.last_at, refusal.example);
                }
            }
            None => drop(refusals.insert(key, refusal)),
        }
    }
    let mut refusals: Vec<_> = refusals.into_values().collect();
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.last_at));
    refusals
}

impl SiteHealth {
    fn count(&self, verdict: Verdict) -> usize {
        self.sensors.iter().filter(|sensor| sensor.verdict == verdict).count()
    }

    fn last_arrival(&self) -> Option<Timestamp> {
        self.sensors.iter().filter_map(|sensor| sensor.last_arrival).max()
    }

    /// Computes the findings, the verdict and the summary.
    fn evaluate(&mut self) {
        let all = self.sensors.len();
        let silent = self.count(Verdict::Silent) + self.count(Verdict::NeverReported);
        let in_service = self.status == "ACTIVE";
        let mut findings = Vec::new();
        if !in_service {
            findings.push(self.not_in_service_finding());
        } else if self.count(Verdict::Unknown) == 0 {
            if silent == all {
                findings.push(self.silence_finding());
            } else if silent > 0 {
                findings.push(self.partial_silence_finding(silent));
            }
        }
        findings.extend(self.refusal_finding());
        findings.extend(self.quarantine_finding());
        findings.extend(self.stale_samples_finding());
        // A site whose bundles are refused or quarantined is not silent: it sends, but nothing is stored. So the
        // finding about the refusal or quarantine comes first.
        let rejection = findings
            .iter()
            .position(|finding| matches!(finding.kind, Verdict::Refused | Verdict::Quarantined));
        let silence_is_first = findings
            .first()
            .is_some_and(|first| matches!(first.kind, Verdict::Silent | Verdict::NeverReported));
        if let (Some(index), true) =
            (rejection, silence_is_first && self.rejected_after_last_arrival())
        {
            let finding = findings.remove(index);
            findings.insert(0, finding);
        }
        self.findings = findings;
        let unread = self.count(Verdict::Unknown);
        let mut sources: Vec<_> = self.unknown.iter().map(|it| it.source.as_str()).collect();
        sources.dedup();
        let sources = sources.join(", ");
        if unread > 0 && in_service {
            self.verdict = Verdict::Unknown;
            self.summary =
                format!("unknown: the readings of {unread} of {all} sensors can't be read");
        } else if let Some(first) = self.findings.first() {
            self.verdict = first.kind;
            self.summary.clone_from(&first.message);
            if !sources.is_empty() {
                self.summary = format!("{}; not checked: {sources}", first.message);
            }
        } else {
            let arrival = self.last_arrival().map_or("never".to_owned(), |at| ago(self.at, at));
            self.summary = format!("reporting; last arrival {arrival}");
            if !sources.is_empty() {
                self.verdict = Verdict::Unknown;
                self.summary =
                    format!("unknown: last arrival {arrival}, but not checked: {sources}");
            }
        }
    }

    /// Returns whether something was refused or quarantined after the last arrival.
    fn rejected_after_last_arrival(&self) -> bool {
        let refused = self.refused.iter().flatten().map(|refusal| refusal.last_at);
        let quarantined = self.quarantined.iter().flatten().map(|failure| failure.last_at);
        let last = refused.chain(quarantined).max();
        last.is_some_and(|last| self.last_arrival().is_none_or(|arrival| last > arrival))
    }

    fn not_in_service_finding(&self) -> Finding {
        Finding {
            kind: Verdict::NotInService,
            message: format!("the site is {}: no readings are expected", self.status),
            next: format!("fieldctl trace {}", self.site_id),
        }
    }

    fn silence_finding(&self) -> Finding {
        let next =
            "If `fieldctl status` shows no problem, the station sends nothing: tell its operator."
                .to_owned();
        let Some(last) = self.last_arrival() else {
            let message = "never reported: no reading of this site is stored".to_owned();
            return Finding { kind: Verdict::NeverReported, message, next };
        };
        let intervals = self.sensors.iter().filter_map(|sensor| sensor.interval_seconds);
        let due = intervals.min().map_or(String::new(), |seconds| {
            format!("; bundles arrived every {}", format_age(seconds * SECOND_MILLIS))
        });
        let message = format!("silent since {last} ({}){due}", ago(self.at, last));
        Finding { kind: Verdict::Silent, message, next }
    }

    fn partial_silence_finding(&self, silent: usize) -> Finding {
        Finding {
            kind: Verdict::PartlySilent,
            message: format!(
                "{silent} of {} sensors are silent, the others report",
                self.sensors.len()
            ),
            next: "The logger works. Have the silent sensors and the logger's sensor list checked."
                .to_owned(),
        }
    }

    fn refusal_finding(&self) -> Option<Finding> {
        let refusals = self.refused.as_deref()?;
        let last = refusals.first()?;
        let count: u64 = refusals.iter().map(|refusal| refusal.count).sum();
        let message = format!(
            "readings refused: {count}x in 24 h, last {}: {} at {}: {}",
            ago(self.at, last.last_at),
            last.reason,
            last.field,
            last.example
        );
        let next = "Tell the sender what to correct; then the same bundles can be sent again.";
        Some(Finding { kind: Verdict::Refused, message, next: next.to_owned() })
    }

    fn quarantine_finding(&self) -> Option<Finding> {
        let failures = self.quarantined.as_deref()?;
        let last = failures.first()?;
        let message = format!(
            "readings quarantined: {} open, the last one {}: {}: {}",
            failures.len(),
            ago(self.at, last.last_at),
            last.error.name,
            last.error.message
        );
        let next = format!("fieldctl failures show {}", last.failure_id);
        Some(Finding { kind: Verdict::Quarantined, message, next })
    }

    fn stale_samples_finding(&self) -> Option<Finding> {
        let stale = self.count(Verdict::StaleSamples);
        let newest = self.sensors.iter().filter_map(|sensor| sensor.last_sample).max()?;
        (stale > 0).then(|| Finding {
            kind: Verdict::StaleSamples,
            message: format!(
                "{stale} of {} sensors send only samples that are older than 24 h; the newest sample is from {newest}",
                self.sensors.len()
            ),
            next: "If no archive is being sent, the logger's clock is wrong: tell its operator."
                .to_owned(),
        })
    }

    /// Returns the exit code: 0 only if everything could be read and there is no finding.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if !self.unknown.is_empty() {
            Exit::Aws
        } else if self.findings.is_empty() {
            Exit::Done
        } else {
            Exit::Failed
        }
    }
}

/// Formats a duration in one unit, as [`age`](crate::render::age) does.
#[must_use]
pub fn format_age(millis: i64) -> String {
    crate::render::age(Timestamp::from_millis(millis), Timestamp::from_millis(0))
}
