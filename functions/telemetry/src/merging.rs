//! From rows to an answer: overlapping rows become one sample per instant, samples become buckets,
//! and both are cut into pages.
//!
//! Rows are taken in the order asked for. A sample waits until no row can follow that holds the same
//! instant; of two samples of one instant the one stored last is told. What is final goes into the
//! answer until that is full.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use contracts::{Timestamp, readings::Sample};
use serde::Serialize;
use series::{BEHIND_ALL_TIMES, SeriesRow, packing::unpack};

/// A request that has read so much answers with what it has.
pub(crate) const BUDGET: Budget = Budget { rows: 5_000, samples: 1_000_000 };

/// How much a request reads before it may stop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    rows: usize,
    samples: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Asc,
    Desc,
}

impl Order {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Asc => "asc",
            Self::Desc => "desc",
        }
    }

    /// The place of an instant, and the instant of a place: places ascend in the order asked for.
    fn turn(self, millis: i64) -> i64 {
        match self {
            Self::Asc => millis,
            Self::Desc => -millis,
        }
    }

    /// The place from which on samples may still come, once a row that starts there was read.
    fn frontier(self, start: i64) -> i64 {
        match self {
            Self::Asc => start,
            Self::Desc => -start.saturating_add(SeriesRow::LONGEST_MILLIS),
        }
    }
}

/// What is aggregated into one bucket, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    Hour,
    Day,
}

impl Span {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    pub(crate) fn millis(self) -> i64 {
        match self {
            Self::Hour => 60 * 60 * 1000,
            Self::Day => 24 * 60 * 60 * 1000,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) order: Order,
    pub(crate) limit: usize,
    pub(crate) aggregate: Option<Span>,
    pub(crate) next: Option<String>,
}

/// Where a page starts: all that comes before the place was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    place: i64,
    /// No row that comes before it holds anything from the place on; not known at the very start.
    row: Option<Arc<str>>,
}

impl Position {
    pub(crate) fn text(&self) -> String {
        format!("{} {}", self.place, self.row.as_deref().unwrap_or_default())
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (place, row) = text.split_once(' ')?;
        Some(Self {
            place: place.parse().ok()?,
            row: Some(row).filter(|r| !r.is_empty()).map(Arc::from),
        })
    }
}

impl Query {
    /// From inclusive, to exclusive, in milliseconds since the epoch, before which there is nothing.
    pub(crate) fn range(&self) -> (i64, i64) {
        let millis = |time: Timestamp| time.millis().max(0);
        (self.from.map_or(0, millis), self.to.map_or(i64::MAX, millis))
    }
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Told {
    Samples(Vec<Sample>),
    Buckets(Vec<Bucket>),
}

/// The samples of an hour or a day. The mean is theirs, however irregular their times are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bucket {
    start: Timestamp,
    count: u64,
    min: f64,
    max: f64,
    mean: f64,
}

/// A bucket that more samples may come for.
#[derive(Debug)]
struct Running {
    index: i64,
    count: u64,
    min: f64,
    max: f64,
    /// Neumaier's sum: what each addition loses is summed beside it.
    sum: f64,
    lost: f64,
}

impl Running {
    /// A power of two: the sum of a bucket's largest values stays finite, and no bit is lost.
    const SCALE: f64 = 1.0 / 1_099_511_627_776.0;

    fn new(index: i64) -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { index, count: 0, min, max, sum: 0.0, lost: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let value = value * Self::SCALE;
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    fn bucket(&self, span: Span) -> Bucket {
        #[expect(clippy::cast_precision_loss, reason = "a day has 86,400,000 instants")]
        let mean = (self.sum + self.lost) / self.count as f64 / Self::SCALE;
        Bucket {
            start: Timestamp::from_millis(self.index * span.millis()),
            count: self.count,
            min: self.min,
            max: self.max,
            mean: mean.clamp(self.min, self.max),
        }
    }
}

/// The answer as it fills.
#[derive(Debug)]
enum Sink {
    Samples { limit: usize, told: Vec<Sample> },
    Buckets { limit: usize, span: Span, told: Vec<Bucket>, running: Option<Running> },
}

impl Sink {
    fn new(aggregate: Option<Span>, limit: usize) -> Self {
        match aggregate {
            None => Self::Samples { limit, told: Vec::new() },
            Some(span) => Self::Buckets { limit, span, told: Vec::new(), running: None },
        }
    }

    fn full(&self) -> bool {
        match self {
            Self::Samples { limit, told } => told.len() >= *limit,
            Self::Buckets { limit, told, .. } => told.len() >= *limit,
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Samples { told, .. } => told.is_empty(),
            Self::Buckets { told, .. } => told.is_empty(),
        }
    }

    /// How many more samples it can take at most.
    fn room(&self) -> usize {
        match self {
            Self::Samples { limit, told } => limit - told.len(),
            Self::Buckets { .. } => usize::MAX,
        }
    }

    /// Takes the next sample that is final, unless that ends the last bucket there is room for.
    fn take(&mut self, sample: Sample) -> bool {
        match self {
            Self::Samples { told, .. } => told.push(sample),
            Self::Buckets { span, told, running, .. } => {
                let index = sample.0.millis().div_euclid(span.millis());
                if let Some(over) = running.take_if(|running| running.index != index) {
                    told.push(over.bucket(*span));
                    if self.full() {
                        return false;
                    }
                    return self.take(sample);
                }
                running.get_or_insert_with(|| Running::new(index)).add(sample.1);
            }
        }
        true
    }

    /// Hears that all samples before the frontier were taken, which may end a bucket.
    fn pass(&mut self, order: Order, frontier: i64) {
        if let Self::Buckets { span, told, running, .. } = self
            && let Some(over) = running.take_if(|it| places(order, *span, it.index).1 < frontier)
        {
            told.push(over.bucket(*span));
        }
    }

    /// The place of the first sample that is not told, when all before the frontier were offered.
    fn resume(&self, order: Order, frontier: i64) -> i64 {
        match self {
            Self::Samples { told, .. } => match told.last() {
                Some(last) if self.full() => order.turn(last.0.millis()) + 1,
                _ => frontier,
            },
            Self::Buckets { span, told, running, .. } => match (running, told.last()) {
                (Some(running), _) => places(order, *span, running.index).0,
                (None, Some(last)) if self.full() => {
                    let index = last.start.millis().div_euclid(span.millis());
                    places(order, *span, index).1 + 1
                }
                _ => frontier,
            },
        }
    }
}

/// The first and the last place of a bucket.
fn places(order: Order, span: Span, index: i64) -> (i64, i64) {
    let start = index * span.millis();
    let end = start + span.millis() - 1;
    match order {
        Order::Asc => (start, end),
        Order::Desc => (-end, -start),
    }
}

/// A sample that may still be overruled.
#[derive(Debug)]
struct Candidate {
    value: f64,
    stored_at: i64,
    row: Arc<str>,
}

/// From rows in the order asked for to an answer.
#[derive(Debug)]
pub(crate) struct Walk {
    order: Order,
    start: Position,
    /// The last place that is asked for.
    last: i64,
    budget: Budget,
    sink: Sink,
    /// By place. No more of them than the answer can take, and one to know that there are more.
    pending: BTreeMap<i64, Candidate>,
    /// The rows that hold something from where the next page would start, with their last place.
    open: Vec<(Arc<str>, i64)>,
    first_row: Option<Arc<str>>,
    last_row: Option<Arc<str>>,
    /// All samples before it are final.
    frontier: i64,
    rows: usize,
    samples: usize,
    exhausted: bool,
}

impl Walk {
    pub(crate) fn new(query: &Query, start: Option<Position>, budget: Budget) -> Self {
        let (from, to) = query.range();
        let (first, last) = match query.order {
            Order::Asc => (from, to - 1),
            Order::Desc => (-(to - 1), -from),
        };
        Self {
            order: query.order,
            start: start.unwrap_or(Position { place: first, row: None }),
            last,
            budget,
            sink: Sink::new(query.aggregate, query.limit),
            pending: BTreeMap::new(),
            open: Vec::new(),
            first_row: None,
            last_row: None,
            frontier: i64::MIN,
            rows: 0,
            samples: 0,
            exhausted: false,
        }
    }

    /// The first and the last row to read, in the table's order.
    pub(crate) fn bounds(&self, query: &Query) -> (String, String) {
        let (from, to) = query.range();
        let low = from.saturating_sub(SeriesRow::LONGEST_MILLIS).max(0);
        let low = Timestamp::from_millis(low).to_string();
        let high = match query.to {
            Some(_) => Timestamp::from_millis(to).to_string(),
            None => BEHIND_ALL_TIMES.to_owned(),
        };
        match (self.order, self.start.row.as_deref()) {
            (_, None) => (low, high),
            (Order::Asc, Some(row)) => (row.to_owned(), high),
            (Order::Desc, Some(row)) => (low, row.to_owned()),
        }
    }

    /// Takes the rows that come next; `exhausted` when there are no more. Fails with the row that
    /// can't be read, and why.
    pub(crate) fn take(
        &mut self,
        rows: Vec<SeriesRow>,
        exhausted: bool,
    ) -> Result<(), (String, String)> {
        for row in rows {
            let name = row.row.clone();
            self.add(row).map_err(|reason| (name, reason))?;
        }
        if exhausted {
            self.exhausted = true;
            self.frontier = i64::MAX;
        }
        while !self.sink.full()
            && let Some(next) = self.pending.first_entry()
            && *next.key() < self.frontier
        {
            let at = Timestamp::from_millis(self.order.turn(*next.key()));
            if self.sink.take(Sample(at, next.get().value)) {
                next.remove();
            }
        }
        self.sink.pass(self.order, self.frontier);
        let place = self.sink.resume(self.order, self.frontier);
        self.open.retain(|(_, last)| *last >= place);
        Ok(())
    }

    fn add(&mut self, row: SeriesRow) -> Result<(), String> {
        let (start, _) = row.row.split_once('/').ok_or("its key has no bundle")?;
        let start: Timestamp = start.parse().map_err(|error| format!("its key: {error}"))?;
        let start = start.millis();
        let key: Arc<str> = row.row.into();
        self.rows += 1;
        self.first_row.get_or_insert_with(|| Arc::clone(&key));
        self.last_row = Some(Arc::clone(&key));
        self.frontier = self.order.frontier(start);

        let (first, last) = match self.order {
            Order::Asc => (start, row.end),
            Order::Desc => (-row.end, -start),
        };
        if last < self.start.place || first > self.last {
            return Ok(());
        }
        self.open.push((Arc::clone(&key), last));
        let samples = unpack(&row.samples).map_err(|error| error.to_string())?;
        self.samples += samples.len();
        for Sample(at, value) in samples {
            let place = self.order.turn(at.millis());
            if !(self.start.place..=self.last).contains(&place) {
                continue;
            }
            let sample = Candidate { value, stored_at: row.stored_at, row: Arc::clone(&key) };
            match self.pending.entry(place) {
                Entry::Vacant(entry) => drop(entry.insert(sample)),
                Entry::Occupied(mut entry) => {
                    if (sample.stored_at, &sample.row) > (entry.get().stored_at, &entry.get().row) {
                        entry.insert(sample);
                    }
                }
            }
            if self.pending.len() > self.sink.room().saturating_add(1) {
                self.pending.pop_last();
            }
        }
        Ok(())
    }

    fn position(&self) -> Position {
        let place = self.sink.resume(self.order, self.frontier).max(self.start.place);
        let row = self.open.first().map(|(row, _)| row).or(self.last_row.as_ref());
        Position { place, row: row.or(self.start.row.as_ref()).cloned() }
    }

    /// Whether there is an answer: all of it, as much as was asked for, or as much as one request
    /// may read. It may not stop where it got nowhere: the next one would read the same again.
    pub(crate) fn done(&self) -> bool {
        let spent = self.rows >= self.budget.rows || self.samples >= self.budget.samples;
        self.exhausted || self.sink.full() || (spent && self.got_on())
    }

    fn got_on(&self) -> bool {
        !self.sink.is_empty() || self.position().row != self.first_row
    }

    pub(crate) fn end(self) -> (Told, Option<Position>) {
        let more = !self.exhausted || !self.pending.is_empty();
        let next = more.then(|| self.position());
        match self.sink {
            Sink::Samples { told, .. } => (Told::Samples(told), next),
            Sink::Buckets { told, .. } => (Told::Buckets(told), next),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
        test_runner::RngSeed,
    };
    use serde_bytes::ByteBuf;
    use series::packing::pack;

    use super::*;

    const HOUR: i64 = 60 * 60 * 1000;
    /// Where the rows of a case begin, in the middle of an hour and of a day.
    const BEGIN: i64 = 1_767_268_800_000 + HOUR / 3;
    /// Coarse, so that rows often hold the same instants.
    const STEP: i64 = 20 * 60 * 1000;

    fn row(start: i64, bundle: usize, stored_at: i64, samples: &BTreeMap<i64, f64>) -> SeriesRow {
        let samples: Vec<_> = samples
            .iter()
            .map(|(after, value)| Sample(Timestamp::from_millis(start + after), *value))
            .collect();
        let at = |sample: Option<&Sample>| sample.map_or(0, |sample| sample.0.millis());
        let bundle = format!("b-{bundle}").parse().expect("an id");
        SeriesRow {
            row: SeriesRow::sort_key(Timestamp::from_millis(at(samples.first())), &bundle),
            end: at(samples.last()),
            stored_at,
            samples: ByteBuf::from(pack(&samples)),
            hash: ByteBuf::new(),
        }
    }

    /// Rows over five days, short ones and such as span a day, stored in no order.
    fn rows() -> impl Strategy<Value = Vec<SeriesRow>> {
        let samples = |most| btree_map(0..most, -1e3..1e3, 1..12);
        let row_of = (0..360_i64, prop_oneof![3 => samples(6_i64), 1 => samples(72)], 0..5_i64);
        vec(row_of, 0..30).prop_map(|rows| {
            let mut rows: Vec<_> = rows
                .into_iter()
                .enumerate()
                .map(|(bundle, (start, samples, stored_at))| {
                    let samples =
                        samples.into_iter().map(|(after, value)| (after * STEP, value)).collect();
                    row(BEGIN + start * STEP, bundle, stored_at, &samples)
                })
                .collect();
            rows.sort_by(|a, b| a.row.cmp(&b.row));
            rows
        })
    }

    fn queries() -> impl Strategy<Value = Query> {
        let time = || proptest::option::of((-5..450_i64, 0..3_i64));
        let order = prop_oneof![Just(Order::Asc), Just(Order::Desc)];
        let aggregate =
            prop_oneof![2 => Just(None), 1 => Just(Some(Span::Hour)), 1 => Just(Some(Span::Day))];
        (time(), time(), order, 1..40_usize, aggregate).prop_filter_map(
            "a time before the other",
            |(from, to, order, limit, aggregate)| {
                // At samples' times, and a millisecond beside them.
                let time = |time: Option<(i64, i64)>| {
                    time.map(|(steps, off)| Timestamp::from_millis(BEGIN + steps * STEP + off - 1))
                };
                let (from, to) = (time(from), time(to));
                let order_of_times = from.zip(to).is_none_or(|(from, to)| from < to);
                order_of_times.then_some(Query { from, to, order, limit, aggregate, next: None })
            },
        )
    }

    /// What must come out, all pages together.
    fn model(rows: &[SeriesRow], query: &Query) -> Told {
        let mut all: BTreeMap<i64, (i64, &str, f64)> = BTreeMap::new();
        for row in rows {
            for Sample(at, value) in unpack(&row.samples).expect("samples") {
                let new = (row.stored_at, row.row.as_str(), value);
                let old = all.entry(at.millis()).or_insert(new);
                if (new.0, new.1) > (old.0, old.1) {
                    *old = new;
                }
            }
        }
        let (from, to) = query.range();
        let mut samples: Vec<_> = all
            .range(from..to)
            .map(|(at, (_, _, value))| Sample(Timestamp::from_millis(*at), *value))
            .collect();
        if query.order == Order::Desc {
            samples.reverse();
        }
        let Some(span) = query.aggregate else { return Told::Samples(samples) };
        let index = |sample: &Sample| sample.0.millis().div_euclid(span.millis());
        let buckets = samples.chunk_by(|a, b| index(a) == index(b)).map(|of_bucket| {
            let values = || of_bucket.iter().map(|sample| sample.1);
            #[expect(clippy::cast_precision_loss, reason = "a few samples")]
            let mean = values().sum::<f64>() / of_bucket.len() as f64;
            Bucket {
                start: Timestamp::from_millis(index(&of_bucket[0]) * span.millis()),
                count: of_bucket.len() as u64,
                min: values().fold(f64::INFINITY, f64::min),
                max: values().fold(f64::NEG_INFINITY, f64::max),
                mean,
            }
        });
        Told::Buckets(buckets.collect())
    }

    /// The places of a row's first and last sample.
    fn extent(row: &SeriesRow, order: Order) -> (i64, i64) {
        let samples = unpack(&row.samples).expect("samples");
        let places = || samples.iter().map(|sample| order.turn(sample.0.millis()));
        (places().min().expect("a sample"), places().max().expect("a sample"))
    }

    /// All pages together, each read from rows of which the table gives so many a call.
    fn walked(rows: &[SeriesRow], query: &Query, per_call: usize, budget: Budget) -> Told {
        let mut all = match query.aggregate {
            None => Told::Samples(Vec::new()),
            Some(_) => Told::Buckets(Vec::new()),
        };
        let mut start = None;
        for _ in 0..10_000 {
            let mut walk = Walk::new(query, start.clone(), budget);
            let (low, high) = walk.bounds(query);
            let within = rows.iter().filter(|row| (&low..=&high).contains(&&row.row)).cloned();
            let mut within: Vec<_> = within.collect();
            if query.order == Order::Desc {
                within.reverse();
            }
            let mut calls = within.chunks(per_call).peekable();
            let mut read = Vec::new();
            while !walk.done() {
                let call = calls.next().unwrap_or_default();
                read.extend(call);
                walk.take(call.to_vec(), calls.peek().is_none()).expect("good rows");
                let told = match &walk.sink {
                    Sink::Samples { told, .. } => told.len(),
                    Sink::Buckets { told, .. } => told.len(),
                };
                if query.aggregate.is_none() {
                    assert!(told + walk.pending.len() <= query.limit + 1);
                }
                let asked = |row: &SeriesRow| {
                    let (first, last) = extent(row, query.order);
                    last >= walk.start.place && first <= walk.last
                };
                let samples = |row: &SeriesRow| unpack(&row.samples).expect("samples").len();
                let samples: usize =
                    read.iter().filter(|row| asked(row)).map(|row| samples(row)).sum();
                let spent = read.len() >= budget.rows || samples >= budget.samples;
                if told == query.limit || spent && told > 0 {
                    assert!(walk.done(), "it has an answer, and reads on");
                } else if walk.done() && calls.peek().is_some() {
                    assert!(spent, "it may read more");
                }
            }
            let (begin, last) = (walk.start.clone(), walk.last);
            let (told, next) = walk.end();
            if let Some(next) = &next {
                // The first row that holds something from there on, else the last that was read.
                let open = read.iter().find(|row| {
                    let (first, end) = extent(row, query.order);
                    end >= next.place && first <= last
                });
                let row = open.or(read.last()).map(|row| row.row.as_str());
                assert_eq!(next.row.as_deref(), row.or(begin.row.as_deref()));
            }
            match (&mut all, told) {
                (Told::Samples(all), Told::Samples(told)) => {
                    assert!(told.len() <= query.limit);
                    all.extend(told);
                }
                (Told::Buckets(all), Told::Buckets(told)) => {
                    assert!(told.len() <= query.limit);
                    all.extend(told);
                }
                (_, told) => panic!("asked for something else: {told:?}"),
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
        panic!("no end");
    }

    fn alike(told: &Told, expected: &Told) -> bool {
        let near = |a: f64, b: f64, scale: f64| (a - b).abs() <= 1e-9 * scale;
        match (told, expected) {
            (Told::Samples(told), Told::Samples(expected)) => told == expected,
            (Told::Buckets(told), Told::Buckets(expected)) => {
                told.len() == expected.len()
                    && told.iter().zip(expected).all(|(a, b)| {
                        (a.start, a.count, a.min, a.max) == (b.start, b.count, b.min, b.max)
                            && near(a.mean, b.mean, b.min.abs().max(b.max.abs()))
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
        fn all_pages_together_are_every_sample_once(
            rows in rows(),
            query in queries(),
            per_call in 1..12_usize,
            budget in (1..20_usize, 1..100_usize),
        ) {
            let budget = Budget { rows: budget.0, samples: budget.1 };
            let told = walked(&rows, &query, per_call, budget);
            let expected = model(&rows, &query);
            prop_assert!(alike(&told, &expected), "{told:?} is not {expected:?}");
        }
    }

    fn all(query: &Query, rows: Vec<SeriesRow>) -> Told {
        let mut walk = Walk::new(query, None, BUDGET);
        walk.take(rows, true).expect("good rows");
        walk.end().0
    }

    fn everything(aggregate: Option<Span>) -> Query {
        Query { from: None, to: None, order: Order::Asc, limit: 9, aggregate, next: None }
    }

    fn buckets_of(values: &[f64]) -> Vec<Bucket> {
        let query = everything(Some(Span::Day));
        let samples = (0..).zip(values.iter().copied()).collect();
        match all(&query, vec![row(BEGIN, 1, 0, &samples)]) {
            Told::Buckets(buckets) => buckets,
            Told::Samples(samples) => panic!("{samples:?}"),
        }
    }

    #[test]
    fn a_mean_keeps_small_values_beside_large_ones_and_does_not_overflow() {
        let of = |values: &[f64]| buckets_of(values)[0].mean;
        assert_eq!(of(&[1e17, 1.0, 1.0, -1e17]).to_bits(), 0.5_f64.to_bits());
        assert_eq!(of(&[1.0, 1e17, 1.0, -1e17]).to_bits(), 0.5_f64.to_bits());
        assert_eq!(of(&[f64::MAX, f64::MAX]).to_bits(), f64::MAX.to_bits());
        assert_eq!(of(&[f64::MIN, f64::MAX, 3.0]).to_bits(), 1.0_f64.to_bits());
        // 0.1 ten times over is 0.9999999999999999 in a naive sum.
        assert_eq!(of(&[0.1; 10]).to_bits(), 0.1_f64.to_bits());
    }

    #[test]
    fn a_row_that_can_not_be_read_is_named() {
        let query = everything(None);
        let good = row(BEGIN, 1, 0, &BTreeMap::from([(0, 1.0)]));
        for (broken, reason) in [
            (SeriesRow { row: "2026-01-01".to_owned(), ..good.clone() }, "its key has no bundle"),
            (SeriesRow { row: "noon/b-2".to_owned(), ..good.clone() }, "its key: "),
            (SeriesRow { samples: ByteBuf::from(b"?"), ..good.clone() }, "packed samples"),
        ] {
            let mut walk = Walk::new(&query, None, BUDGET);
            let (name, told) =
                walk.take(vec![good.clone(), broken.clone()], true).expect_err("a broken row");
            assert_eq!(name, broken.row);
            assert!(told.starts_with(reason), "{told}");
        }
    }
}
