//! The content of a page: samples, or buckets of samples with their count, minimum, maximum and mean.

use contracts::{
    Sensor, Timestamp,
    sample::{Qualifier, Quality, Sample},
};
use serde::{Serialize, Serializer, ser::SerializeSeq};

use crate::query::{Order, Query, Span, View, offset};

/// The samples or the buckets of a response.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Content {
    Samples(Vec<ShownSample>),
    Buckets(Vec<Bucket>),
}

/// A sample of a response: `[time, value]`, or `[time, value, flag, [qualifiers]]` if flags are shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ShownSample {
    pub(crate) sample: Sample,
    /// The qualifiers. `None` if flags are not shown.
    pub(crate) qualifiers: Option<Vec<Qualifier>>,
}

impl Serialize for ShownSample {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { sample: Sample { at, value, flag }, qualifiers } = self;
        let length = if qualifiers.is_some() { 4 } else { 2 };
        let mut entries = serializer.serialize_seq(Some(length))?;
        entries.serialize_element(at)?;
        entries.serialize_element(value)?;
        if let Some(qualifiers) = qualifiers {
            entries.serialize_element(flag)?;
            entries.serialize_element(qualifiers)?;
        }
        entries.end()
    }
}

/// The aggregate of the samples of one hour or day. Only samples of the requested quality count.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bucket {
    pub(crate) start: Timestamp,
    pub(crate) count: u64,
    /// Absent if no sample counts.
    #[serde(flatten)]
    pub(crate) values: Option<BucketValues>,
}

/// The values of a bucket. The mean is not weighted by time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct BucketValues {
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

/// A bucket that can still receive samples.
#[derive(Debug)]
pub(crate) struct OpenBucket {
    index: i64,
    count: u64,
    min: f64,
    max: f64,
    /// The running sum. Neumaier summation: the rounding error of each addition is summed in `compensation`.
    sum: f64,
    compensation: f64,
}

impl OpenBucket {
    /// The scale of the sum. It keeps the sum of the largest values finite. It is a power of two, so that scaling
    /// loses no bits.
    const SCALE: f64 = 1.0 / 1_099_511_627_776.0;

    fn new(index: i64) -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { index, count: 0, min, max, sum: 0.0, compensation: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.count += 1;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        let value = value * Self::SCALE;
        let sum = self.sum + value;
        self.compensation += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    fn bucket(&self, span: Span) -> Bucket {
        #[expect(clippy::cast_precision_loss, reason = "a day has 86,400,000 instants")]
        let mean = (self.sum + self.compensation) / self.count as f64 / Self::SCALE;
        let (min, max) = (self.min, self.max);
        let values =
            (self.count > 0).then(|| BucketValues { min, max, mean: mean.clamp(min, max) });
        let start = Timestamp::from_millis(self.index * span.millis());
        Bucket { start, count: self.count, values }
    }
}

/// The content of a page that is being filled.
#[derive(Debug)]
pub(crate) enum Output {
    Samples { limit: usize, samples: Vec<ShownSample> },
    Buckets { limit: usize, buckets: Vec<Bucket>, open: Option<OpenBucket>, rule: BucketRule },
}

/// Which samples are in a bucket, and which of them count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BucketRule {
    span: Span,
    quality: Quality,
    /// The milliseconds to subtract from the time of a sample to get the moment that decides its bucket; see [`offset`].
    offset: i64,
}

impl BucketRule {
    /// Returns the index of a sample's bucket.
    fn index(self, at: Timestamp) -> i64 {
        (at.millis() - self.offset).div_euclid(self.span.millis())
    }

    /// Returns the ordinals of the first and the last sample that a bucket can have.
    fn ordinals(self, order: Order, index: i64) -> (i64, i64) {
        let start = index * self.span.millis() + self.offset;
        let end = start + self.span.millis() - 1;
        match order {
            Order::Asc => (start, end),
            Order::Desc => (-end, -start),
        }
    }
}

impl Output {
    pub(crate) fn new(query: &Query, sensor: &Sensor) -> Self {
        let limit = query.limit;
        let Some(span) = query.aggregate else {
            return Self::Samples { limit, samples: Vec::new() };
        };
        let rule = BucketRule { span, quality: query.view.quality, offset: offset(sensor) };
        Self::Buckets { limit, buckets: Vec::new(), open: None, rule }
    }

    /// Returns whether the sample takes room on the page.
    pub(crate) fn shows(&self, view: View, sample: Sample) -> bool {
        match self {
            Self::Samples { .. } => view.shows(sample),
            Self::Buckets { .. } => true,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Samples { limit, samples } => samples.len() >= *limit,
            Self::Buckets { limit, buckets, .. } => buckets.len() >= *limit,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Samples { samples, .. } => samples.is_empty(),
            Self::Buckets { buckets, .. } => buckets.is_empty(),
        }
    }

    /// Returns the number of samples that still fit.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Samples { limit, samples } => limit - samples.len(),
            Self::Buckets { .. } => usize::MAX,
        }
    }

    /// Adds the next sample. Returns `false` if the sample would begin a bucket that does not fit any more.
    pub(crate) fn push(&mut self, shown: &ShownSample) -> bool {
        match self {
            Self::Samples { samples, .. } => samples.push(shown.clone()),
            Self::Buckets { buckets, open, rule, .. } => {
                let index = rule.index(shown.sample.at);
                if let Some(closed) = open.take_if(|open| open.index != index) {
                    buckets.push(closed.bucket(rule.span));
                    if self.is_full() {
                        return false;
                    }
                    return self.push(shown);
                }
                let open = open.get_or_insert_with(|| OpenBucket::new(index));
                if let Some(value) = shown.sample.counted(rule.quality) {
                    open.add(value);
                }
            }
        }
        true
    }

    /// Closes the open bucket if it ends before `frontier`. This is an ordinal ([`Order::ordinal`]); all samples
    /// before it must have been added.
    pub(crate) fn close_before(&mut self, order: Order, frontier: i64) {
        if let Self::Buckets { buckets, open, rule, .. } = self
            && let Some(closed) = open.take_if(|it| rule.ordinals(order, it.index).1 < frontier)
        {
            buckets.push(closed.bucket(rule.span));
        }
    }

    /// Returns the ordinal at which the next page begins. [`Self::push`] must have been called for all samples before
    /// the ordinal `frontier`, until the page was full.
    pub(crate) fn resume_at(&self, order: Order, frontier: i64) -> i64 {
        match self {
            Self::Samples { samples, .. } => match samples.last() {
                Some(last) if self.is_full() => order.ordinal(last.sample.at.millis()) + 1,
                _ => frontier,
            },
            Self::Buckets { buckets, open, rule, .. } => match (open, buckets.last()) {
                (Some(open), _) => rule.ordinals(order, open.index).0,
                (None, Some(last)) if self.is_full() => {
                    let index = last.start.millis().div_euclid(rule.span.millis());
                    rule.ordinals(order, index).1 + 1
                }
                _ => frontier,
            },
        }
    }

    /// Returns the content without the bucket that is still open.
    pub(crate) fn finish(self) -> Content {
        match self {
            Self::Samples { samples, .. } => Content::Samples(samples),
            Self::Buckets { buckets, .. } => Content::Buckets(buckets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_of(values: &[f64]) -> f64 {
        let mut bucket = OpenBucket::new(0);
        for value in values {
            bucket.add(*value);
        }
        bucket.bucket(Span::Day).values.expect("values").mean
    }

    #[test]
    fn the_mean_is_exact_for_values_of_different_magnitude_and_does_not_overflow() {
        assert_eq!(mean_of(&[1e17, 1.0, 1.0, -1e17]).to_bits(), 0.5_f64.to_bits());
        assert_eq!(mean_of(&[1.0, 1e17, 1.0, -1e17]).to_bits(), 0.5_f64.to_bits());
        assert_eq!(mean_of(&[f64::MAX, f64::MAX]).to_bits(), f64::MAX.to_bits());
        assert_eq!(mean_of(&[f64::MIN, f64::MAX, 3.0]).to_bits(), 1.0_f64.to_bits());
        // A naive sum of ten times 0.1 is 0.9999999999999999.
        assert_eq!(mean_of(&[0.1; 10]).to_bits(), 0.1_f64.to_bits());
    }
}
