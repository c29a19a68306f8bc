//! Reads a day of a station of NOAA's SURFRAD network and converts it to bundles of readings.
//!
//! The file has two header lines, then a line per minute with numbers separated by spaces. A reading has no quality
//! flag, so values that NOAA flags as bad are only counted and not sent. Temperatures of the instruments' cases and
//! domes are for maintenance, and net values follow from the others. Both are ignored.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use contracts::{
    Metric, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series},
    sample::Sample,
};
use serde::Serialize;

/// The quantities that are sent, each with the index of its pair of value and flag in a line.
const QUANTITIES: [(Metric, usize); 13] = [
    (Metric::DownwellingShortwave, 0),
    (Metric::UpwellingShortwave, 1),
    (Metric::DirectShortwave, 2),
    (Metric::DiffuseShortwave, 3),
    (Metric::DownwellingLongwave, 4),
    (Metric::UpwellingLongwave, 7),
    (Metric::UvbFlux, 10),
    (Metric::PhotosyntheticFlux, 11),
    (Metric::AirTemperature, 15),
    (Metric::RelativeHumidity, 16),
    (Metric::WindSpeed, 17),
    (Metric::WindFromDirection, 18),
    (Metric::AirPressure, 19),
];
const HEADER_LINES: usize = 2;
/// Year, day of the year, month, day, hour, minute, decimal hour, the sun's zenith angle.
const FIELDS_BEFORE_PAIRS: usize = 8;
const FIELDS: usize = FIELDS_BEFORE_PAIRS + 2 * 20;
const MISSING: &str = "-9999.9";

/// The error for a line in the wrong format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct ParseError {
    /// The file's name, as the caller gave it.
    pub file: String,
    /// The line's number, from 1.
    pub line: usize,
    /// The problem.
    pub problem: String,
}

/// The numbers of values that are not sent, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SkippedValues {
    /// The value is missing (-9999.9), with flag 0 or 1.
    pub missing: usize,
    /// Flag 1 with a value: it is physically impossible.
    pub impossible: usize,
    /// Flag 2: the value is questionable.
    pub questionable: usize,
}

impl SkippedValues {
    /// Returns the number of all values that are not sent.
    #[must_use]
    pub fn total(self) -> usize {
        self.missing + self.impossible + self.questionable
    }
}

/// The day of one quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The metric. The values are in its usual unit.
    pub metric: Metric,
    /// The good values.
    pub samples: Vec<Sample>,
    /// The numbers of the other values.
    pub left_out: SkippedValues,
}

/// The day of one station.
#[derive(Clone, Debug, PartialEq)]
pub struct Day {
    /// The station's name.
    pub station: String,
    /// The number of lines with measurements.
    pub rows: usize,
    /// One column for each quantity, in the order of `QUANTITIES`.
    pub columns: Vec<Column>,
}

impl Day {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| format!("{file} can't be read"))?;
        Ok(Self::parse(&file, &text)?)
    }

    /// Parses a file's text.
    pub fn parse(file: &str, text: &str) -> Result<Self, ParseError> {
        let parse_error = |line: usize, problem: String| ParseError {
            file: file.to_owned(),
            line: line + 1,
            problem,
        };
        let mut lines = text.lines().enumerate();
        let (_, station) =
            lines.next().ok_or_else(|| parse_error(0, "the station is missing".to_owned()))?;
        let mut day = Self {
            station: station.trim().to_owned(),
            rows: 0,
            columns: QUANTITIES
                .map(|(metric, _)| Column {
                    metric,
                    samples: vec![],
                    left_out: SkippedValues::default(),
                })
                .into(),
        };
        let mut before = None;
        for (line, text) in lines.skip(HEADER_LINES - 1) {
            let at = day.add(text).map_err(|problem| parse_error(line, problem))?;
            if before.is_some_and(|before| at <= before) {
                return Err(parse_error(line, format!("{at} is not later than the previous line")));
            }
            before = Some(at);
        }
        if day.rows == 0 {
            return Err(parse_error(HEADER_LINES, "the first measurement is missing".to_owned()));
        }
        Ok(day)
    }

    /// Adds a line of measurements. Returns their time.
    fn add(&mut self, line: &str) -> Result<Timestamp, String> {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (&[year, _, month, day, hour, minute, ..], FIELDS) = (&fields[..], fields.len()) else {
            return Err(format!("{} fields, expected {FIELDS}", fields.len()));
        };
        let text = format!("{year:0>4}-{month:0>2}-{day:0>2}T{hour:0>2}:{minute:0>2}:00Z");
        let at: Timestamp =
            text.parse().map_err(|error| format!("{text} is not a time: {error}"))?;
        for (column, (_, pair)) in self.columns.iter_mut().zip(QUANTITIES) {
            let index = FIELDS_BEFORE_PAIRS + 2 * pair;
            let (text, flag) = (fields[index], fields[index + 1]);
            let left_out = match flag {
                "0" | "1" if text == MISSING => &mut column.left_out.missing,
                "0" => {
                    let value: Option<f64> =
                        text.parse().ok().filter(|value: &f64| value.is_finite());
                    let value = value
                        .ok_or_else(|| format!("field {}: {text:?} is not a number", index + 1))?;
                    column.samples.push(Sample::new(at, value));
                    continue;
                }
                "1" => &mut column.left_out.impossible,
                "2" => &mut column.left_out.questionable,
                _ => return Err(format!("field {}: {flag:?} is not a flag (0, 1, 2)", index + 2)),
            };
            *left_out += 1;
        }
        self.rows += 1;
        Ok(at)
    }

    /// Returns the number of good values.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.columns.iter().map(|column| column.samples.len()).sum()
    }

    /// Returns the numbers of values that are not sent.
    #[must_use]
    pub fn left_out(&self) -> SkippedValues {
        self.columns.iter().fold(SkippedValues::default(), |sum, Column { left_out, .. }| {
            SkippedValues {
                missing: sum.missing + left_out.missing,
                impossible: sum.impossible + left_out.impossible,
                questionable: sum.questionable + left_out.questionable,
            }
        })
    }

    /// Returns the good values in bundles of `minutes` minutes, aligned to the clock. A quantity without a good value
    /// in a bundle's time has no series in the bundle.
    pub fn bundles(
        &self,
        site: SiteId,
        sensors: &BTreeMap<Metric, SensorId>,
        minutes: u32,
    ) -> Result<Vec<Bundle>> {
        let width = i64::from(minutes.max(1)) * 60_000;
        let mut bundles = BTreeMap::<i64, Vec<Series>>::new();
        for Column { metric, samples, .. } in &self.columns {
            let window = |sample: &Sample| sample.at.millis().div_euclid(width);
            for part in samples.chunk_by(|a, b| window(a) == window(b)) {
                let sensor = sensors.get(metric);
                let sensor_id = *sensor.with_context(|| format!("no sensor for {metric}"))?;
                let series = Series::new(sensor_id, part.to_vec());
                bundles.entry(window(&part[0])).or_default().push(series);
            }
        }
        let bundle = |(window, series)| {
            let start = Timestamp::from_millis(window * width);
            // E.g. `2016-01-01T00:15`. If a day is sent again, its bundles have the same ids.
            let bundle_id = start.to_string()[..16].parse()?;
            Ok(Bundle::new(bundle_id, site, series))
        };
        bundles.into_iter().map(bundle).collect()
    }
}

#[cfg(test)]
mod tests {
    use contracts::{OnboardingId, OperatorId};

    use super::*;

    const ALAMOSA: &str = include_str!("../../../tests/data/surfrad-alamosa-2016-01-01.dat");

    fn site() -> SiteId {
        SiteId::registered(OperatorId::DEFAULT, "", "alamosa")
    }

    fn sensors() -> BTreeMap<Metric, SensorId> {
        let sensor = |index| SensorId::from_onboarding(OnboardingId::from_site(site()), index);
        QUANTITIES.iter().enumerate().map(|(index, (metric, _))| (*metric, sensor(index))).collect()
    }

    fn column(day: &Day, metric: Metric) -> &Column {
        day.columns.iter().find(|column| column.metric == metric).expect("the metric has a column")
    }

    #[test]
    fn the_day_of_alamosa_is_parsed() -> Result<()> {
        let day = Day::parse("alamosa", ALAMOSA)?;
        assert_eq!((day.station.as_str(), day.rows), ("Alamosa", 1440));
        assert_eq!(day.samples(), 11 * 1440);
        let missing = SkippedValues { missing: 1440, ..SkippedValues::default() };
        for metric in [Metric::UvbFlux, Metric::PhotosyntheticFlux] {
            assert_eq!(column(&day, metric).left_out, missing);
            assert_eq!(column(&day, metric).samples, []);
        }
        assert_eq!(day.left_out(), SkippedValues { missing: 2 * 1440, ..SkippedValues::default() });
        // The values of the file's first line.
        for (metric, value) in [
            (Metric::DownwellingShortwave, -1.8),
            (Metric::UpwellingLongwave, 276.0),
            (Metric::AirTemperature, -7.6),
            (Metric::RelativeHumidity, 52.7),
            (Metric::WindSpeed, 3.1),
            (Metric::WindFromDirection, 304.7),
            (Metric::AirPressure, 773.5),
        ] {
            let first = Sample::new("2016-01-01T00:00:00Z".parse()?, value);
            assert_eq!(column(&day, metric).samples.first(), Some(&first), "{metric}");
        }
        let last = column(&day, Metric::WindSpeed).samples.last().context("no samples")?;
        assert_eq!(last.at, "2016-01-01T23:59:00Z".parse()?);
        Ok(())
    }

    /// Returns the file's first lines, with one field of the second measurement replaced.
    fn with(field: usize, text: &str) -> String {
        let mut lines: Vec<_> = ALAMOSA.lines().take(5).map(str::to_owned).collect();
        let mut fields: Vec<_> = lines[3].split_whitespace().collect();
        fields[field] = text;
        lines[3] = fields.join(" ");
        lines.join("\n")
    }

    #[test]
    fn flagged_values_are_only_counted() -> Result<()> {
        let temperature = FIELDS_BEFORE_PAIRS + 2 * 15;
        let one = SkippedValues::default();
        for (field, text, left_out) in [
            (temperature + 1, "1", SkippedValues { impossible: 1, ..one }),
            (temperature + 1, "2", SkippedValues { questionable: 1, ..one }),
            (temperature, MISSING, SkippedValues { missing: 1, ..one }),
        ] {
            let day = Day::parse("a file", &with(field, text))?;
            let column = column(&day, Metric::AirTemperature);
            assert_eq!((column.samples.len(), column.left_out), (2, left_out), "{text}");
        }
        Ok(())
    }

    #[test]
    fn an_error_names_the_line_in_the_wrong_format() {
        for (text, expected) in [
            (String::new(), "f.dat:1: the station is missing"),
            (" Alamosa\n 37.70\n".to_owned(), "f.dat:3: the first measurement is missing"),
            (with(40, "52.7 0"), "f.dat:4: 49 fields, expected 48"),
            (with(38, "warm"), "f.dat:4: field 39: \"warm\" is not a number"),
            (with(38, "inf"), "f.dat:4: field 39: \"inf\" is not a number"),
            (with(39, "3"), "f.dat:4: field 40: \"3\" is not a flag (0, 1, 2)"),
            (with(2, "13"), "f.dat:4: 2016-13-01T00:01:00Z is not a time"),
            (with(5, "0"), "f.dat:4: 2016-01-01T00:00:00.000Z is not later than the previous line"),
        ] {
            let error = Day::parse("f.dat", &text).expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn bundles_are_aligned_to_the_clock() -> Result<()> {
        let day = Day::parse("alamosa", ALAMOSA)?;
        let bundles = day.bundles(site(), &sensors(), 15)?;
        assert_eq!(bundles.len(), 96);
        assert!(bundles.iter().all(|bundle| bundle.series.len() == 11 && bundle.samples() == 165));
        assert!(bundles.iter().all(|bundle| bundle.check(Timestamp::now()).is_ok()));
        assert_eq!(bundles[1].bundle_id.as_str(), "2016-01-01T00:15");
        assert_eq!(bundles[1].series[0].samples[0].at, "2016-01-01T00:15:00Z".parse()?);
        let no_sensors = BTreeMap::new();
        let error = day.bundles(site(), &no_sensors, 15).expect_err("no sensor").to_string();
        assert!(error.starts_with("no sensor for surface_downwelling_shortwave"), "{error}");
        Ok(())
    }
}
