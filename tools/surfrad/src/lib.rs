//! Reads a day of a station of NOAA's SURFRAD network and converts it to bundles of readings.
//!
//! The file has two header lines, then a line per minute with numbers separated by spaces. Each value has NOAA's flag,
//! which becomes the flag of the sample. Temperatures of the instruments' cases and domes are for maintenance, and net
//! values follow from the others. Both are ignored.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context, Result};
use contracts::{
    Metric, SensorId, SiteId, Timestamp,
    readings::{Bundle, Series},
    sample::{Flag, Sample},
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
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;

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

/// The numbers of samples by flag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlagCounts {
    /// NOAA's flag 0: the value passed the quality control.
    pub pass: usize,
    /// NOAA's flag 2: the value is questionable.
    pub suspect: usize,
    /// NOAA's flag 1 with a value: it is physically impossible.
    pub fail: usize,
    /// The value is missing (-9999.9).
    pub missing: usize,
}

impl FlagCounts {
    fn add(&mut self, flag: Flag) {
        match flag {
            Flag::Pass | Flag::NotEvaluated => self.pass += 1,
            Flag::Suspect => self.suspect += 1,
            Flag::Fail => self.fail += 1,
            Flag::Missing => self.missing += 1,
        }
    }
}

impl fmt::Display for FlagCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, suspect, fail, missing } = self;
        write!(f, "{pass} good, {suspect} suspect, {fail} failed, {missing} missing")
    }
}

/// The day of one quantity.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The metric. The values are in its usual unit.
    pub metric: Metric,
    /// One sample for each row of the file.
    pub samples: Vec<Sample>,
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
            columns: QUANTITIES.map(|(metric, _)| Column { metric, samples: vec![] }).into(),
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
            let flag = match flag {
                "0" => Flag::Pass,
                "1" => Flag::Fail,
                "2" => Flag::Suspect,
                _ => return Err(format!("field {}: {flag:?} is not a flag (0, 1, 2)", index + 2)),
            };
            if text == MISSING {
                column.samples.push(Sample::missing(at));
                continue;
            }
            let value = text.parse().ok().filter(|value: &f64| value.is_finite());
            let value =
                value.ok_or_else(|| format!("field {}: {text:?} is not a number", index + 1))?;
            column.samples.push(Sample::flagged(at, value, flag));
        }
        self.rows += 1;
        Ok(at)
    }

    /// Returns the same measurements as if they were taken on the UTC day of `day`. A site accepts only recent samples,
    /// and the files are from 2016.
    #[must_use]
    pub fn moved_to(mut self, day: Timestamp) -> Self {
        let midnight = |at: Timestamp| at.millis() - at.millis().rem_euclid(DAY_MILLIS);
        let first = self.columns.iter().find_map(|column| column.samples.first());
        let shift = first.map_or(0, |first| midnight(day) - midnight(first.at));
        for sample in self.columns.iter_mut().flat_map(|column| &mut column.samples) {
            sample.at = sample.at.plus_millis(shift);
        }
        self
    }

    /// Returns the same measurements as if they were taken yesterday (UTC), the latest day that is complete.
    #[must_use]
    pub fn moved_to_yesterday(self) -> Self {
        self.moved_to(Timestamp::now().plus_millis(-DAY_MILLIS))
    }

    /// Returns the number of samples.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.columns.iter().map(|column| column.samples.len()).sum()
    }

    /// Returns the numbers of samples by flag.
    #[must_use]
    pub fn flags(&self) -> FlagCounts {
        let mut counts = FlagCounts::default();
        for sample in self.columns.iter().flat_map(|column| &column.samples) {
            counts.add(sample.flag);
        }
        counts
    }

    /// Returns the samples in bundles of `minutes` minutes, aligned to the clock.
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
        assert_eq!(day.samples(), 13 * 1440);
        for metric in [Metric::UvbFlux, Metric::PhotosyntheticFlux] {
            let samples = &column(&day, metric).samples;
            assert!(samples.iter().all(|sample| sample.value.is_none()), "{metric}");
        }
        let counts = FlagCounts { pass: 11 * 1440, missing: 2 * 1440, ..FlagCounts::default() };
        assert_eq!(day.flags(), counts);
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
            let first = Sample::flagged("2016-01-01T00:00:00Z".parse()?, value, Flag::Pass);
            assert_eq!(column(&day, metric).samples.first(), Some(&first), "{metric}");
        }
        let last = column(&day, Metric::WindSpeed).samples.last().context("no samples")?;
        assert_eq!(last.at, "2016-01-01T23:59:00Z".parse()?);
        Ok(())
    }

    /// Returns the file's first lines, with `count` fields of the second measurement replaced by `text`.
    fn with(field: usize, text: &str, count: usize) -> String {
        let mut lines: Vec<_> = ALAMOSA.lines().take(5).map(str::to_owned).collect();
        let mut fields: Vec<_> = lines[3].split_whitespace().collect();
        fields.splice(field..field + count, [text]);
        lines[3] = fields.join(" ");
        lines.join("\n")
    }

    #[test]
    fn flags_become_those_of_qartod() -> Result<()> {
        let temperature = FIELDS_BEFORE_PAIRS + 2 * 15;
        for (value, flag, expected) in [
            ("5", "0", (1, Some(5.0))),
            (MISSING, "1", (9, None)),
            (MISSING, "0", (9, None)),
            ("1400", "1", (4, Some(1400.0))),
            ("600", "2", (3, Some(600.0))),
        ] {
            let day = Day::parse("a file", &with(temperature, &format!("{value} {flag}"), 2))?;
            let sample = column(&day, Metric::AirTemperature).samples[1];
            assert_eq!((u8::from(sample.flag), sample.value), expected, "{value} {flag}");
        }
        Ok(())
    }

    #[test]
    fn a_day_is_moved_by_whole_days() -> Result<()> {
        let day = Day::parse("alamosa", ALAMOSA)?.moved_to("2026-11-29T17:00:00Z".parse()?);
        let samples = &column(&day, Metric::AirTemperature).samples;
        let ends = [samples[0].at, samples[1439].at].map(|at| at.to_string());
        assert_eq!(ends, ["2026-11-29T00:00:00.000Z", "2026-11-29T23:59:00.000Z"]);
        assert_eq!(samples[0].value, Some(-7.6));
        Ok(())
    }

    #[test]
    fn an_error_names_the_line_in_the_wrong_format() {
        for (text, expected) in [
            (String::new(), "f.dat:1: the station is missing"),
            (" Alamosa\n 37.70\n".to_owned(), "f.dat:3: the first measurement is missing"),
            (with(40, "52.7 0", 1), "f.dat:4: 49 fields, expected 48"),
            (with(38, "warm", 1), "f.dat:4: field 39: \"warm\" is not a number"),
            (with(38, "inf", 1), "f.dat:4: field 39: \"inf\" is not a number"),
            (with(39, "3", 1), "f.dat:4: field 40: \"3\" is not a flag (0, 1, 2)"),
            (with(2, "13", 1), "f.dat:4: 2016-13-01T00:01:00Z is not a time"),
            (
                with(5, "0", 1),
                "f.dat:4: 2016-01-01T00:00:00.000Z is not later than the previous line",
            ),
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
        assert!(bundles.iter().all(|bundle| bundle.series.len() == 13 && bundle.samples() == 195));
        assert!(bundles.iter().all(|bundle| bundle.check(Timestamp::now()).is_ok()));
        assert_eq!(bundles[1].bundle_id.as_str(), "2016-01-01T00:15");
        assert_eq!(bundles[1].series[0].samples[0].at, "2016-01-01T00:15:00Z".parse()?);
        let no_sensors = BTreeMap::new();
        let error = day.bundles(site(), &no_sensors, 15).expect_err("no sensor").to_string();
        assert!(error.starts_with("no sensor for surface_downwelling_shortwave"), "{error}");
        Ok(())
    }
}
