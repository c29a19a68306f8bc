//! What is stored and returned in the end, from what was sent. It knows neither rows nor pages, nor the order of processing.

use std::collections::{BTreeMap, BTreeSet};

use contracts::{
    SensorId,
    readings::{Bundle, TimeRange},
    sample::{Qualifier, Sample},
};

/// The bits of a sample's value, its flag and its qualifiers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content {
    value: Option<u64>,
    flag: u8,
    qualifiers: Vec<Qualifier>,
}

impl Content {
    /// Returns the content of a sample.
    pub fn of(sample: Sample, qualifiers: &[Qualifier]) -> Self {
        Self {
            value: sample.value.map(f64::to_bits),
            flag: sample.flag.into(),
            qualifiers: qualifiers.to_vec(),
        }
    }
}

/// Samples by their time in milliseconds.
pub type Samples = BTreeMap<i64, Content>;

/// What a sample is stored under. A sample of the same sensor, bundle and revision is stored once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeriesKey {
    /// The sensor.
    pub sensor: SensorId,
    /// The id of the bundle.
    pub bundle: String,
    /// The revision of the bundle.
    pub revision: u32,
}

/// When a record arrived: the time in milliseconds and the sequence number. All sequence numbers are equally long.
pub type Arrived = (i64, String);

/// A series of a record.
#[derive(Clone, Debug)]
pub struct Sent {
    /// What it is stored under.
    pub key: SeriesKey,
    /// The range that it replaces.
    pub replaces: Option<TimeRange>,
    /// The samples.
    pub samples: Samples,
}

/// Returns the series of a bundle.
pub fn sent(bundle: &Bundle) -> Vec<Sent> {
    let series = bundle.series.iter().map(|series| {
        let content = |(index, sample): (usize, &Sample)| {
            (sample.at.millis(), Content::of(*sample, series.qualifiers.of(index)))
        };
        Sent {
            key: SeriesKey {
                sensor: series.sensor_id,
                bundle: bundle.bundle_id.to_string(),
                revision: bundle.revision,
            },
            replaces: series.replaces,
            samples: series.samples.iter().enumerate().map(content).collect(),
        }
    });
    series.collect()
}

/// Divides samples into the parts that are accepted or refused as a whole. None of them spans a day.
pub fn pieces(samples: &Samples) -> Vec<Samples> {
    let mut pieces: Vec<Samples> = Vec::new();
    for (at, content) in samples {
        let start = pieces.last().and_then(|piece| piece.keys().next().copied());
        if start.is_none_or(|start| at - start >= 24 * 60 * 60 * 1000) {
            pieces.push(Samples::new());
        }
        if let Some(piece) = pieces.last_mut() {
            piece.insert(*at, content.clone());
        }
    }
    pieces
}

/// Returns the samples that a query of a sensor returns, after these series were sent to it.
///
/// At each instant, the greatest revision wins, then the later first arrival, then the greater id of the bundle.
pub fn current(sent: &[(Arrived, &Sent)]) -> Samples {
    let mut first_arrivals: BTreeMap<(i64, &SeriesKey), (&Arrived, &Content)> = BTreeMap::new();
    for (arrived, Sent { key, samples, .. }) in sent {
        for (at, content) in samples {
            let first = first_arrivals.entry((*at, key)).or_insert((arrived, content));
            first.0 = first.0.min(arrived);
        }
    }
    let replaced: BTreeSet<_> = sent
        .iter()
        .filter_map(|(_, Sent { key, replaces, .. })| {
            let TimeRange { from, to } = (*replaces)?;
            Some((from.millis(), to.millis(), key.revision))
        })
        .collect();
    let mut winners = BTreeMap::new();
    for ((at, key), (arrived, content)) in first_arrivals {
        let vanished = replaced
            .iter()
            .any(|(from, to, revision)| key.revision < *revision && (*from..*to).contains(&at));
        if vanished {
            continue;
        }
        let candidate = (key.revision, arrived, &key.bundle, content);
        let winner = winners.entry(at).or_insert(candidate);
        *winner = (*winner).max(candidate);
    }
    winners.into_iter().map(|(at, (.., content))| (at, content.clone())).collect()
}
