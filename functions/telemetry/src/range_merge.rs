//! Merges the overlapping rows of a time range into one sample per instant, and cuts the result into pages.
//!
//! Rows are read in the requested order. A sample is final when no later row can contain the same instant. If several
//! rows have a sample of the same instant, one of them wins ([`Precedence`]). A greater revision can replace a range
//! ([`Marker`]). The samples of smaller revisions in this range are left out. Final samples are added to the page until
//! it is full.
//!
//! Times are compared as ordinals: milliseconds since the epoch, negated for descending order ([`Order::ordinal`]). The
//! frontier is the ordinal before which no later row has samples. The cutoff is the first ordinal whose candidates were
//! dropped because the page is full.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use contracts::{Sensor, Timestamp, stream::Arrival};
use series::{AFTER_ALL_TIMES, Marker, RowKey, SeriesRow, packing::unpack_qualified, replaced};

use crate::{
    aggregation::{Content, Output, ShownSample},
    query::{Order, Query, View},
};

/// The limits after which a request returns the page as it is.
pub(crate) const BUDGET: Budget = Budget { rows: 5_000, samples: 1_000_000 };

/// The amount that a request reads before it may return a page that is not full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    rows: usize,
    samples: usize,
}

/// The start of a page. All samples before `ordinal` were in earlier pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    ordinal: i64,
    /// The first row to read: no row before it has a sample at or after `ordinal`. `None` for the first page.
    row: Option<Arc<str>>,
}

impl Position {
    pub(crate) fn text(&self) -> String {
        format!("{} {}", self.ordinal, self.row.as_deref().unwrap_or_default())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (ordinal, row) = text.split_once(' ')?;
        Some(Self {
            ordinal: ordinal.parse().ok()?,
            row: Some(row).filter(|r| !r.is_empty()).map(Arc::from),
        })
    }
}

/// What decides between samples of the same instant. The greatest one wins.
///
/// The revision comes first, so neither a late nor a replayed original wins against its correction. Of two bundles with the
/// same revision, the one that arrived later wins.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    revision: u32,
    arrival: Arrival,
    bundle: Box<str>,
    row: Arc<str>,
}

/// A sample that a later row may still replace.
#[derive(Debug)]
struct Candidate {
    sample: ShownSample,
    /// Whether the sample takes room on the page. A sample that is not shown still hides those that it replaces.
    is_shown: bool,
    precedence: Arc<Precedence>,
}

/// Merges rows, which arrive in the requested order, into a page.
#[derive(Debug)]
pub(crate) struct RangeMerge {
    order: Order,
    start: Position,
    /// The last requested ordinal.
    last: i64,
    budget: Budget,
    sensor: Sensor,
    view: View,
    output: Output,
    /// The ranges that revisions replace.
    markers: Vec<Marker>,
    /// The candidates by ordinal. At most as many shown candidates are kept as fit into the page, plus one. That one shows
    /// that there are more.
    pending: BTreeMap<i64, Candidate>,
    /// The number of candidates that are shown.
    shown: usize,
    /// The first ordinal whose candidates were dropped because the page has no room for them.
    cutoff: i64,
    /// The rows that have samples for the next page, with their last ordinal.
    open: Vec<(Arc<str>, i64)>,
    first_row: Option<Arc<str>>,
    last_row: Option<Arc<str>>,
    /// The ordinal before which all samples are final.
    frontier: i64,
    rows: usize,
    samples: usize,
    exhausted: bool,
}

impl RangeMerge {
    pub(crate) fn new(
        query: &Query,
        start: Option<Position>,
        budget: Budget,
        markers: Vec<Marker>,
        sensor: &Sensor,
    ) -> Self {
        let (from, to) = query.range(sensor);
        let (first, last) = match query.order {
            Order::Asc => (from, to - 1),
            Order::Desc => (-(to - 1), -from),
        };
        Self {
            order: query.order,
            start: start.unwrap_or(Position { ordinal: first, row: None }),
            last,
            budget,
            sensor: sensor.clone(),
            view: query.view,
            output: Output::new(query, sensor),
            markers,
            pending: BTreeMap::new(),
            shown: 0,
            cutoff: i64::MAX,
            open: Vec::new(),
            first_row: None,
            last_row: None,
            frontier: i64::MIN,
            rows: 0,
            samples: 0,
            exhausted: false,
        }
    }

    /// Returns the sort keys of the first and the last row to read, in the table's order.
    pub(crate) fn bounds(&self, query: &Query) -> (String, String) {
        let (from, to) = query.range(&self.sensor);
        let low = from.saturating_sub(SeriesRow::MAX_SPAN_MILLIS).max(0);
        let low = Timestamp::from_millis(low).to_string();
        let high = match query.to {
            Some(_) => Timestamp::from_millis(to).to_string(),
            None => AFTER_ALL_TIMES.to_owned(),
        };
        match (self.order, self.start.row.as_deref()) {
            (_, None) => (low, high),
            (Order::Asc, Some(row)) => (row.to_owned(), high),
            (Order::Desc, Some(row)) => (low, row.to_owned()),
        }
    }

    /// Adds the next rows. `exhausted` means that there are no more rows. If a row can't be decoded, returns its sort
    /// key and the reason.
    pub(crate) fn add_rows(
        &mut self,
        rows: Vec<SeriesRow>,
        exhausted: bool,
    ) -> Result<(), (String, String)> {
        for row in rows {
            self.add(&row).map_err(|reason| (row.row, reason))?;
        }
        if exhausted {
            self.exhausted = true;
            self.frontier = i64::MAX;
        }
        while !self.output.is_full()
            && let Some(next) = self.pending.first_entry()
            && *next.key() < self.frontier
        {
            let Candidate { sample, is_shown, .. } = next.get();
            if !is_shown || self.output.push(sample) {
                self.shown -= usize::from(*is_shown);
                next.remove();
            }
        }
        self.output.close_before(self.order, self.frontier);
        let ordinal = self.resume_at();
        self.open.retain(|(_, last)| *last >= ordinal);
        Ok(())
    }

    fn add(&mut self, row: &SeriesRow) -> Result<(), String> {
        let parsed = RowKey::parse(&row.row);
        let RowKey { start, bundle, revision } =
            parsed.ok_or("its sort key is not a time and a bundle id")?;
        let start = start.millis();
        let key: Arc<str> = row.row.as_str().into();
        self.rows += 1;
        self.first_row.get_or_insert_with(|| Arc::clone(&key));
        self.last_row = Some(Arc::clone(&key));
        self.frontier = self.order.frontier(start);

        let (first, last) = match self.order {
            Order::Asc => (start, row.end),
            Order::Desc => (-row.end, -start),
        };
        if last < self.start.ordinal || first > self.last {
            return Ok(());
        }
        self.open.push((Arc::clone(&key), last));
        let (samples, qualifiers) =
            unpack_qualified(&row.samples).map_err(|error| error.to_string())?;
        self.samples += samples.len();
        let replaced = replaced(&self.markers, revision);
        let precedence = |arrival| {
            let (bundle, row) = (bundle.into(), Arc::clone(&key));
            Arc::new(Precedence { revision, arrival, bundle, row })
        };
        let earlier = row.earlier.iter().map(|(count, arrival)| (*count, arrival.clone()));
        let mut arrivals = earlier.chain([(usize::MAX, row.first_arrival())]).peekable();
        let mut current = None;
        for (index, sample) in samples.into_iter().enumerate() {
            while arrivals.peek().is_some_and(|(count, _)| index >= *count) {
                arrivals.next();
                current = None;
            }
            let ordinal = self.order.ordinal(sample.at.millis());
            let is_requested = (self.start.ordinal..=self.last).contains(&ordinal);
            if !is_requested
                || ordinal >= self.cutoff
                || replaced.iter().any(|range| range.contains(sample.at))
            {
                continue;
            }
            let Some((_, arrival)) = arrivals.peek() else { break };
            let precedence = current.get_or_insert_with(|| precedence(arrival.clone()));
            let sample = self.sensor.effective(sample, self.view.values);
            let candidate = Candidate {
                is_shown: self.output.shows(self.view, sample),
                sample: ShownSample {
                    sample,
                    qualifiers: self.view.flags.then(|| qualifiers.of(index).to_vec()),
                },
                precedence: Arc::clone(precedence),
            };
            let is_shown = usize::from(candidate.is_shown);
            match self.pending.entry(ordinal) {
                Entry::Vacant(entry) => {
                    self.shown += is_shown;
                    entry.insert(candidate);
                }
                Entry::Occupied(mut entry) => {
                    if candidate.precedence > entry.get().precedence {
                        self.shown += is_shown;
                        self.shown -= usize::from(entry.insert(candidate).is_shown);
                    }
                }
            }
            while self.shown > self.output.room().saturating_add(1)
                && let Some((ordinal, dropped)) = self.pending.pop_last()
            {
                self.shown -= usize::from(dropped.is_shown);
                self.cutoff = ordinal;
            }
        }
        Ok(())
    }

    /// Returns the ordinal at which the next page begins.
    fn resume_at(&self) -> i64 {
        self.output.resume_at(self.order, self.frontier.min(self.cutoff))
    }

    fn position(&self) -> Position {
        let ordinal = self.resume_at().max(self.start.ordinal);
        let row = self.open.first().map(|(row, _)| row).or(self.last_row.as_ref());
        Position { ordinal, row: row.or(self.start.row.as_ref()).cloned() }
    }

    /// Returns whether the page is done: all rows were read, the page is full, or the budget is spent.
    ///
    /// A page without progress is not done, since the next request would read the same rows again.
    pub(crate) fn is_done(&self) -> bool {
        let budget_spent = self.rows >= self.budget.rows || self.samples >= self.budget.samples;
        // At and after the cutoff, candidates were dropped, so the page can't continue there.
        let is_cut = self.frontier >= self.cutoff;
        self.exhausted || self.output.is_full() || is_cut || (budget_spent && self.made_progress())
    }

    fn made_progress(&self) -> bool {
        !self.output.is_empty() || self.position().row != self.first_row
    }

    pub(crate) fn finish(self) -> (Content, Option<Position>) {
        let more = !self.exhausted || !self.pending.is_empty() || self.cutoff < i64::MAX;
        let next = more.then(|| self.position());
        (self.output.finish(), next)
    }
}

#[cfg(test)]
mod tests {
    use contracts::{
        Metric, OnboardingId, OperatorId, SensorId, SiteId,
        effective::Values,
        readings::TimeRange,
        sample::{Flag, Qualifiers, Quality, Sample},
        sensor::{Calibration, Dated, SensorMetadata, Stamp},
    };
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
        test_runner::RngSeed,
    };
    use serde_bytes::ByteBuf;
    use serde_json::json;
    use series::packing::{pack, unpack};

    use super::*;
    use crate::{
        aggregation::{Bucket, BucketValues},
        query::Span,
    };

    const HOUR: i64 = 60 * 60 * 1000;
    /// The start of the generated rows. It is in the middle of an hour and of a day.
    const BEGIN: i64 = 1_767_268_800_000 + HOUR / 3;
    /// The interval of the samples, in milliseconds. It is coarse, so that rows often contain the same instants.
    const STEP: i64 = 20 * 60 * 1000;

    fn arrival(millis: i64) -> Arrival {
        Arrival::new(Timestamp::from_millis(millis), "1")
    }

    /// Returns a sensor whose stamps are at the end of the interval or not.
    fn sensor(stamp: Option<Stamp>) -> Sensor {
        let site = SiteId::registered(OperatorId::DEFAULT, "", "range merge");
        let mut metadata = SensorMetadata::default();
        metadata.description.stamp = stamp;
        let calibration = Calibration { gain: 2.0, offset: 0.0 };
        metadata.calibrations = vec![Dated::always(calibration)];
        Sensor {
            sensor_id: SensorId::from_onboarding(OnboardingId::from_site(site), 0),
            metric: Metric::AirTemperature,
            unit: "Cel".to_owned(),
            min: None,
            max: None,
            utc_offset: None,
            metadata,
        }
    }

    /// Returns a sample with a flag that its value determines. One in ten has no value.
    fn sample(at: Timestamp, value: f64) -> Sample {
        let flag = match value.to_bits() % 10 {
            0 => Flag::Missing,
            1 | 2 => Flag::Fail,
            3 => Flag::Suspect,
            4 | 5 => Flag::Pass,
            _ => Flag::NotEvaluated,
        };
        Sample::flagged(at, value, flag)
    }

    /// Returns qualifiers that follow from the samples.
    fn qualifiers(samples: &[Sample]) -> Qualifiers {
        let mut all = Qualifiers::default();
        for (index, sample) in samples.iter().enumerate() {
            if sample.flag == Flag::Suspect {
                all.push(index, vec!["<".parse().expect("a qualifier")]);
            }
        }
        all
    }

    /// Returns a row of the first revision, as an earlier release stored it.
    fn row(start: i64, bundle: usize, stored_at: i64, samples: &BTreeMap<i64, f64>) -> SeriesRow {
        let samples: Vec<_> = samples
            .iter()
            .map(|(after, value)| sample(Timestamp::from_millis(start + after), *value))
            .collect();
        let at = |sample: Option<&Sample>| sample.map_or(0, |sample| sample.at.millis());
        let bundle = format!("b-{bundle}").parse().expect("an id");
        SeriesRow {
            row: RowKey::text(Timestamp::from_millis(at(samples.first())), &bundle, 1),
            end: at(samples.last()),
            stored_at,
            arrival: None,
            earlier: Vec::new(),
            samples: ByteBuf::from(pack(&samples, &qualifiers(&samples))),
            hash: ByteBuf::new(),
        }
    }

    /// Generates rows over five days. Some are short, some span a day. They are stored in random order. Some are of a later
    /// revision, some belong to the same bundle, and some of their samples arrived earlier than others.
    fn rows() -> impl Strategy<Value = Vec<SeriesRow>> {
        let samples = |max| btree_map(0..max, -1e3..1e3, 1..12);
        let generated_row = (
            0..360_i64,
            prop_oneof![3 => samples(6_i64), 1 => samples(72)],
            0..5_i64,
            prop_oneof![3 => Just(1_u32), 1 => 2..5_u32],
            proptest::option::of((0..5_i64, 0..6_usize)),
            0..12_usize,
        );
        vec(generated_row, 0..30).prop_map(|rows| {
            let mut rows: Vec<_> = rows
                .into_iter()
                .map(|(start, samples, stored_at, revision, arrived, bundle)| {
                    let samples =
                        samples.into_iter().map(|(after, value)| (after * STEP, value)).collect();
                    let mut row = row(BEGIN + start * STEP, bundle, stored_at, &samples);
                    if revision > 1 {
                        row.row = format!("{}/{revision}", row.row);
                    }
                    let Some((millis, count)) = arrived else { return row };
                    row.arrival = Some(arrival(millis));
                    row.with_arrival(count, samples.len(), &arrival(millis - 2)).unwrap_or(row)
                })
                .collect();
            rows.sort_by(|a, b| a.row.cmp(&b.row));
            rows.dedup_by(|a, b| a.row == b.row);
            rows
        })
    }

    fn markers() -> impl Strategy<Value = Vec<Marker>> {
        vec((-5..380_i64, 1..100_i64, 2..5_u32), 0..4).prop_map(|markers| {
            let marker = |(from, length, revision): (i64, i64, u32)| {
                let time = |steps: i64| Timestamp::from_millis(BEGIN + steps * STEP);
                let replaces = TimeRange { from: time(from), to: time(from + length) };
                Marker { replaces, revision }
            };
            markers.into_iter().map(marker).collect()
        })
    }

    fn queries() -> impl Strategy<Value = Query> {
        let time = || proptest::option::of((-5..450_i64, 0..3_i64));
        let order = prop_oneof![Just(Order::Asc), Just(Order::Desc)];
        let aggregate =
            prop_oneof![2 => Just(None), 1 => Just(Some(Span::Hour)), 1 => Just(Some(Span::Day))];
        let view = (
            prop::sample::select(&Quality::ALL),
            prop::sample::select(&Values::ALL),
            any::<bool>(),
        )
            .prop_map(|(quality, values, flags)| View { quality, values, flags });
        (time(), time(), order, 1..40_usize, aggregate, view).prop_filter_map(
            "from must be before to",
            |(from, to, order, limit, aggregate, view)| {
                // The time of a sample, or one millisecond before or after it.
                let time = |time: Option<(i64, i64)>| {
                    time.map(|(steps, off)| Timestamp::from_millis(BEGIN + steps * STEP + off - 1))
                };
                let (from, to) = (time(from), time(to));
                let is_range = from.zip(to).is_none_or(|(from, to)| from < to);
                is_range.then_some(Query { from, to, order, limit, aggregate, view, next: None })
            },
        )
    }

    /// What [`Precedence`] compares: revision, arrival, bundle and row.
    type Rank<'a> = (u32, Arrival, &'a str, &'a str);

    /// Returns the expected content of all pages.
    fn model(rows: &[SeriesRow], markers: &[Marker], query: &Query, sensor: &Sensor) -> Content {
        let mut all: BTreeMap<i64, Vec<_>> = BTreeMap::new();
        for row in rows {
            let RowKey { bundle, revision, .. } = RowKey::parse(&row.row).expect("a key");
            for (index, sample) in unpack(&row.samples).expect("samples").into_iter().enumerate() {
                let is_replaced = markers.iter().any(|marker| {
                    let range = marker.replaces.from..marker.replaces.to;
                    marker.revision > revision && range.contains(&sample.at)
                });
                if !is_replaced {
                    let rank = (revision, row.arrival_of(index), bundle, row.row.as_str());
                    all.entry(sample.at.millis()).or_default().push((rank, sample));
                }
            }
        }
        let (from, to) = query.range(sensor);
        let winner = |candidates: &Vec<(Rank<'_>, Sample)>| {
            let winner = candidates.iter().max_by(|a, b| a.0.cmp(&b.0));
            winner.expect("at least one").1
        };
        let winners = all.range(from..to).map(|(_, candidates)| winner(candidates));
        let mut samples: Vec<_> =
            winners.map(|sample| sensor.effective(sample, query.view.values)).collect();
        if query.order == Order::Desc {
            samples.reverse();
        }
        let Some(span) = query.aggregate else {
            samples.retain(|sample| {
                query.view.quality == Quality::All || sample.counted(query.view.quality).is_some()
            });
            let shown = |sample: Sample| {
                let own = qualifiers(&[sample]).of(0).to_vec();
                ShownSample { sample, qualifiers: query.view.flags.then_some(own) }
            };
            return Content::Samples(samples.into_iter().map(shown).collect());
        };
        let is_end = sensor.metadata.description.stamp == Some(Stamp::End);
        let index =
            |sample: &Sample| (sample.at.millis() - i64::from(is_end)).div_euclid(span.millis());
        let buckets = samples.chunk_by(|a, b| index(a) == index(b)).map(|samples| {
            let values = || samples.iter().filter_map(|sample| sample.counted(query.view.quality));
            let count = values().count();
            #[expect(clippy::cast_precision_loss, reason = "a few samples")]
            let mean = values().sum::<f64>() / count as f64;
            let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
            let (min, max) = (values().fold(min, f64::min), values().fold(max, f64::max));
            Bucket {
                start: Timestamp::from_millis(index(&samples[0]) * span.millis()),
                count: count as u64,
                values: (count > 0).then_some(BucketValues { min, max, mean }),
            }
        });
        Content::Buckets(buckets.collect())
    }

    /// Returns the ordinals of the row's first and last sample.
    fn extent(row: &SeriesRow, order: Order) -> (i64, i64) {
        let samples = unpack(&row.samples).expect("samples");
        let ordinals = || samples.iter().map(|sample| order.ordinal(sample.at.millis()));
        (ordinals().min().expect("a sample"), ordinals().max().expect("a sample"))
    }

    /// Returns whether the row has a sample at or after this ordinal that no revision replaces.
    fn is_visible(row: &SeriesRow, markers: &[Marker], ordinal: i64, query: &Query) -> bool {
        let revision = RowKey::parse(&row.row).expect("a key").revision;
        let is_replaced = |at| {
            let mut later = markers.iter().filter(|marker| marker.revision > revision);
            later.any(|marker| marker.replaces.contains(at))
        };
        let samples = unpack(&row.samples).expect("samples");
        samples
            .iter()
            .any(|it| query.order.ordinal(it.at.millis()) >= ordinal && !is_replaced(it.at))
    }

    /// Returns the content of all pages. Each call to the table returns `per_call` rows.
    fn all_pages(
        rows: &[SeriesRow],
        markers: &[Marker],
        query: &Query,
        sensor: &Sensor,
        per_call: usize,
        budget: Budget,
    ) -> Content {
        let mut all = match query.aggregate {
            None => Content::Samples(Vec::new()),
            Some(_) => Content::Buckets(Vec::new()),
        };
        let mut start = None;
        for _ in 0..10_000 {
            let mut merge = RangeMerge::new(query, start.clone(), budget, markers.to_vec(), sensor);
            let (low, high) = merge.bounds(query);
            let within = rows.iter().filter(|row| (&low..=&high).contains(&&row.row)).cloned();
            let mut within: Vec<_> = within.collect();
            if query.order == Order::Desc {
                within.reverse();
            }
            let mut calls = within.chunks(per_call).peekable();
            let mut read = Vec::new();
            while !merge.is_done() {
                let call = calls.next().unwrap_or_default();
                read.extend(call);
                merge.add_rows(call.to_vec(), calls.peek().is_none()).expect("valid rows");
                let count = match &merge.output {
                    Output::Samples { samples, .. } => samples.len(),
                    Output::Buckets { buckets, .. } => buckets.len(),
                };
                if query.aggregate.is_none() {
                    assert!(count + merge.shown <= query.limit + 1);
                }
                let requested = |row: &SeriesRow| {
                    let (first, last) = extent(row, query.order);
                    last >= merge.start.ordinal && first <= merge.last
                };
                let samples = |row: &SeriesRow| unpack(&row.samples).expect("samples").len();
                let samples: usize =
                    read.iter().filter(|row| requested(row)).map(|row| samples(row)).sum();
                let budget_spent = read.len() >= budget.rows || samples >= budget.samples;
                if count == query.limit || budget_spent && count > 0 {
                    assert!(merge.is_done(), "the page is complete, but the merge reads on");
                } else if merge.is_done() && calls.peek().is_some() {
                    assert!(budget_spent, "the merge stopped before the budget was spent");
                }
            }
            let (start_position, last) = (merge.start.clone(), merge.last);
            let (content, next) = merge.finish();
            if let Some(next) = &next {
                // The first row that was read and has samples for the next page, otherwise the last row that was read.
                let has_more = |row: &SeriesRow| {
                    let (first, end) = extent(row, query.order);
                    end >= next.ordinal && first <= last
                };
                let open = read.iter().find(|row| has_more(row));
                let expected = open.or(read.last()).map(|row| row.row.as_str());
                let expected = expected.or(start_position.row.as_deref());
                let index = |name: &str| read.iter().position(|row| row.row == name);
                if markers.is_empty() {
                    assert_eq!(next.row.as_deref(), expected);
                } else if let Some(visible) = read
                    .iter()
                    .find(|row| has_more(row) && is_visible(row, markers, next.ordinal, query))
                {
                    // If only replaced samples of a row remain for the next page, the next page may read the row again,
                    // but need not.
                    let position = next.row.as_deref().and_then(index);
                    assert!(position <= index(&visible.row), "{next:?} is after {visible:?}");
                }
            }
            match (&mut all, content) {
                (Content::Samples(all), Content::Samples(content)) => {
                    assert!(content.len() <= query.limit);
                    all.extend(content);
                }
                (Content::Buckets(all), Content::Buckets(content)) => {
                    assert!(content.len() <= query.limit);
                    all.extend(content);
                }
                (_, content) => panic!("other content than requested: {content:?}"),
            }
            match next {
                None => return all,
                Some(next) => {
                    assert_ne!(Some(&next), start.as_ref(), "the same page again");
                    start = Position::parse(&next.text());
                    assert_eq!(start, Some(next));
                }
            }
        }
        panic!("the pages do not end");
    }

    fn nearly_equal(content: &Content, expected: &Content) -> bool {
        let is_close = |a: f64, b: f64, scale: f64| (a - b).abs() <= 1e-9 * scale;
        match (content, expected) {
            (Content::Samples(content), Content::Samples(expected)) => content == expected,
            (Content::Buckets(content), Content::Buckets(expected)) => {
                content.len() == expected.len()
                    && content.iter().zip(expected).all(|(a, b)| {
                        let values = match (&a.values, &b.values) {
                            (None, None) => true,
                            (Some(a), Some(b)) => {
                                (a.min, a.max) == (b.min, b.max)
                                    && is_close(a.mean, b.mean, b.min.abs().max(b.max.abs()))
                            }
                            _ => false,
                        };
                        (a.start, a.count) == (b.start, b.count) && values
                    })
            }
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 2_000,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn all_pages_together_contain_every_sample_once(
            rows in rows(),
            markers in markers(),
            query in queries(),
            stamp in prop::sample::select(vec![None, Some(Stamp::Start), Some(Stamp::End)]),
            per_call in 1..12_usize,
            budget in (1..20_usize, 1..100_usize),
        ) {
            let budget = Budget { rows: budget.0, samples: budget.1 };
            let sensor = sensor(stamp);
            let content = all_pages(&rows, &markers, &query, &sensor, per_call, budget);
            let expected = model(&rows, &markers, &query, &sensor);
            prop_assert!(nearly_equal(&content, &expected), "{content:?} is not {expected:?}");
        }
    }

    #[test]
    fn samples_count_by_their_flags() {
        let minute = |n: i64| Timestamp::from_millis(BEGIN + n * 60 * 1000);
        let samples = [
            Sample::flagged(minute(0), 5.0, Flag::Pass),
            Sample::missing(minute(1)),
            Sample::flagged(minute(2), 1400.0, Flag::Fail),
            Sample::flagged(minute(3), 600.0, Flag::Suspect),
        ];
        let mut row = row(BEGIN, 1, 0, &BTreeMap::from([(0, 1.0)]));
        row.end = minute(3).millis();
        row.samples = ByteBuf::from(pack(&samples, &Qualifiers::default()));
        let content = |quality, aggregate| {
            let view = View { quality, values: Values::Raw, flags: false };
            let (from, to, order) = (None, None, Order::Asc);
            let query = Query { from, to, order, limit: 9, aggregate, view, next: None };
            let mut merge = RangeMerge::new(&query, None, BUDGET, Vec::new(), &sensor(None));
            merge.add_rows(vec![row.clone()], true).expect("a row");
            serde_json::to_value(merge.finish().0).expect("JSON")
        };
        for (quality, count, mean, shown) in [
            (Quality::Good, 1, 5.0, json!([5.0])),
            (Quality::Usable, 2, 302.5, json!([5.0, 600.0])),
            (Quality::All, 3, 2005.0 / 3.0, json!([5.0, null, 1400.0, 600.0])),
        ] {
            let day = &content(quality, Some(Span::Day))["buckets"][0];
            assert_eq!((&day["count"], &day["mean"]), (&json!(count), &json!(mean)), "{day}");
            let all = &content(quality, None)["samples"];
            let values = all.as_array().expect("samples").iter().map(|sample| &sample[1]);
            assert_eq!(json!(values.collect::<Vec<_>>()), shown);
        }
    }

    #[test]
    fn a_bucket_without_counted_samples_has_no_values() {
        let mut row = row(BEGIN, 1, 0, &BTreeMap::from([(0, 1.0)]));
        let missing = [Sample::missing(Timestamp::from_millis(BEGIN))];
        row.samples = ByteBuf::from(pack(&missing, &Qualifiers::default()));
        let query = Query {
            from: None,
            to: None,
            order: Order::Asc,
            limit: 9,
            aggregate: Some(Span::Hour),
            view: View::default(),
            next: None,
        };
        let mut merge = RangeMerge::new(&query, None, BUDGET, Vec::new(), &sensor(None));
        merge.add_rows(vec![row], true).expect("a row");
        let content = serde_json::to_value(merge.finish().0).expect("JSON");
        assert_eq!(
            content["buckets"],
            json!([{ "start": "2026-01-01T12:00:00.000Z", "count": 0 }])
        );
    }

    #[test]
    fn an_unreadable_row_is_named_in_the_error() {
        let query = Query {
            from: None,
            to: None,
            order: Order::Asc,
            limit: 9,
            aggregate: None,
            view: View::default(),
            next: None,
        };
        let good = row(BEGIN, 1, 0, &BTreeMap::from([(0, 1.0)]));
        for (broken, reason) in [
            (
                SeriesRow { row: "2026-01-01".to_owned(), ..good.clone() },
                "its sort key is not a time and a bundle id",
            ),
            (
                SeriesRow { row: "noon/b-2".to_owned(), ..good.clone() },
                "its sort key is not a time and a bundle id",
            ),
            (SeriesRow { samples: ByteBuf::from(b"?"), ..good.clone() }, "packed samples"),
        ] {
            let mut merge = RangeMerge::new(&query, None, BUDGET, Vec::new(), &sensor(None));
            let (name, message) =
                merge.add_rows(vec![good.clone(), broken.clone()], true).expect_err("a broken row");
            assert_eq!(name, broken.row);
            assert!(message.starts_with(reason), "{message}");
        }
    }
}
