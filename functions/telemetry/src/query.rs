//! The parsed parameters of a query for readings.

use contracts::{
    Sensor, Timestamp,
    effective::Values,
    sample::{Quality, Sample},
    sensor::Stamp,
};
use series::SeriesRow;

/// The order of the samples in time.
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

    /// Converts an instant to an ordinal, and an ordinal to an instant. The ordinal is the number of milliseconds since
    /// the epoch, negated for the descending order. Ordinals therefore ascend in the requested order.
    pub(crate) fn ordinal(self, millis: i64) -> i64 {
        match self {
            Self::Asc => millis,
            Self::Desc => -millis,
        }
    }

    /// Returns the frontier after a row that starts at `start` was read: no later row has samples before this ordinal.
    pub(crate) fn frontier(self, start: i64) -> i64 {
        match self {
            Self::Asc => start,
            Self::Desc => -start.saturating_add(SeriesRow::MAX_SPAN_MILLIS),
        }
    }
}

/// The length of a bucket. Buckets begin at whole hours or days in UTC.
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

/// What a query shows of the stored samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The samples that count.
    pub(crate) quality: Quality,
    /// The values.
    pub(crate) values: Values,
    /// Whether samples are shown with their flags and qualifiers.
    pub(crate) flags: bool,
}

impl View {
    /// Returns whether a query without an aggregate shows the sample.
    pub(crate) fn shows(self, sample: Sample) -> bool {
        self.quality == Quality::All || sample.counted(self.quality).is_some()
    }
}

/// The parameters of a query.
#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) from: Option<Timestamp>,
    pub(crate) to: Option<Timestamp>,
    pub(crate) order: Order,
    pub(crate) limit: usize,
    pub(crate) aggregate: Option<Span>,
    pub(crate) view: View,
    pub(crate) next: Option<String>,
}

impl Query {
    /// Returns the requested range in milliseconds since the epoch. The start is inclusive, the end exclusive. Neither
    /// is negative.
    ///
    /// For an aggregate, the range is that of the moments to which the samples are attributed ([`offset`]).
    pub(crate) fn range(&self, sensor: &Sensor) -> (i64, i64) {
        let offset = self.aggregate.map_or(0, |_| offset(sensor));
        let millis = |time: Timestamp| time.millis().max(0) + offset;
        (self.from.map_or(0, millis), self.to.map_or(i64::MAX, millis))
    }
}

/// Returns the offset of aggregates in milliseconds: 1 if the stamps of the sensor are at the end of the interval, otherwise 0.
///
/// The time of a sample minus this offset decides its bucket. So a sample at 11:00 that covers the hour before is in the
/// bucket that begins at 10:00.
pub(crate) fn offset(sensor: &Sensor) -> i64 {
    i64::from(sensor.metadata.description.stamp == Some(Stamp::End))
}
