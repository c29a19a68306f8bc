//! Plots a sensor's readings as a line of Braille dots in the terminal. A character has two dots across and
//! four dots down.

use std::{fmt, ops::RangeInclusive};

use contracts::{
    Timestamp,
    sample::{Quality, Sample},
};

/// The width of the plot. With the labels on both sides it takes less than 100 columns.
const COLUMNS: usize = 72;
const ROWS: usize = 6;
const DOTS_ACROSS: usize = 2 * COLUMNS;
const DOTS_DOWN: usize = 4 * ROWS;
const DAY_MILLIS: i64 = 24 * 60 * 60 * 1000;
const TICKS: usize = 8;
const TICK_COLUMNS: usize = COLUMNS / TICKS;
/// The distance between the dots of a limit, which is a dotted line.
const LIMIT_DOTS: usize = 4;

/// A plot of a sensor's readings in a period.
#[derive(Debug)]
pub struct Plot<'a> {
    /// The title above the plot.
    pub title: String,
    /// The time at the left edge.
    pub from: Timestamp,
    /// The time at the right edge. It must be later than `from`.
    pub to: Timestamp,
    /// The samples of the period, sorted by time. At least one must have a usable value.
    pub samples: &'a [Sample],
    /// The limits, each with its name.
    pub limits: Vec<(&'static str, f64)>,
    /// The periods in which the sensor was beyond a limit, as start and end.
    pub breaches: Vec<(Timestamp, Timestamp)>,
}

/// Converts a fraction (0 to 1) of a length to an index, from 0 to `whole - 1`.
fn position(part: f64, whole: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "some hundred dots at most"
    )]
    let position = (part.clamp(0.0, 1.0) * whole as f64) as usize;
    position.min(whole - 1)
}

/// The dots of the plot, which are printed as Braille patterns.
struct Canvas([[bool; DOTS_ACROSS]; DOTS_DOWN]);

impl Canvas {
    fn row(&self, row: usize) -> String {
        let character = |column: usize| {
            // The bits of a pattern go down the left side, down the right side, then along the bottom.
            let bits = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
            let lines = bits.iter().zip(&self.0[4 * row..]);
            let set = lines.flat_map(|(bits, dots)| {
                bits.iter().zip(&dots[2 * column..]).filter(|(_, dot)| **dot).map(|(bit, _)| bit)
            });
            char::from_u32(0x2800 + set.sum::<u32>()).unwrap_or(' ')
        };
        (0..COLUMNS).map(character).collect()
    }
}

impl Plot<'_> {
    fn millis(&self) -> i64 {
        (self.to.millis() - self.from.millis()).max(1)
    }

    /// Returns the horizontal position of an instant, from 0 to `whole - 1`.
    fn across(&self, at: Timestamp, whole: usize) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of some years")]
        let part = (at.millis() - self.from.millis()) as f64 / self.millis() as f64;
        position(part, whole)
    }

    /// Returns the label of a tick: the time of day, or the date if the period is longer than two days.
    fn label(&self, tick: usize) -> String {
        let part = self.millis() * i64::try_from(tick).unwrap_or_default();
        let at = self.from.plus_millis(part / i64::try_from(TICKS).unwrap_or(1)).to_string();
        if self.millis() > 2 * DAY_MILLIS {
            return at[5..10].to_owned();
        }
        match &at[11..16] {
            "00:00" if tick == TICKS => "24:00".to_owned(),
            time => time.to_owned(),
        }
    }

    /// Returns the usable values with their times.
    fn values(&self) -> impl Iterator<Item = (Timestamp, f64)> {
        self.samples.iter().filter_map(|sample| Some((sample.at, sample.counted(Quality::Usable)?)))
    }

    /// Returns the range of the values: from the smallest to the largest sample or limit.
    fn range(&self) -> RangeInclusive<f64> {
        let shown = self.values().map(|(_, value)| value);
        let shown = shown.chain(self.limits.iter().map(|(_, limit)| *limit));
        let (min, max) = shown
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), v| (min.min(v), max.max(v)));
        if min < max { min..=max } else { min - 1.0..=max + 1.0 }
    }
}

impl fmt::Display for Plot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.range();
        let down = |value: f64| {
            let part = (range.end() - value) / (range.end() - range.start());
            position(part, DOTS_DOWN)
        };
        let mut canvas = Canvas([[false; DOTS_ACROSS]; DOTS_DOWN]);
        for (_, limit) in &self.limits {
            canvas.0[down(*limit)].iter_mut().step_by(LIMIT_DOTS).for_each(|dot| *dot = true);
        }
        let mut before = None;
        for (at, value) in self.values() {
            let (x, y) = (self.across(at, DOTS_ACROSS), down(value));
            // The vertical line from the previous sample leaves no gaps, however steep the change is.
            let from = before.unwrap_or(y);
            for line in &mut canvas.0[y.min(from)..=y.max(from)] {
                line[x] = true;
            }
            before = Some(y);
        }

        writeln!(f, "  {}", terminal::line(&self.title))?;
        for row in 0..ROWS {
            let label = match row {
                0 => format!("{:.1}", range.end()),
                _ if row == ROWS - 1 => format!("{:.1}", range.start()),
                _ => String::new(),
            };
            let of_row = self.limits.iter().filter(|(_, limit)| down(*limit) / 4 == row);
            let limits: Vec<_> = of_row.map(|(name, limit)| format!("{name} {limit}")).collect();
            let line = format!("{label:>9} ┤{} {}", canvas.row(row), limits.join(", "));
            writeln!(f, "{}", line.trim_end())?;
        }
        if !self.limits.is_empty() {
            let mut breached = [' '; COLUMNS];
            for (from, to) in &self.breaches {
                let (from, to) = (self.across(*from, COLUMNS), self.across(*to, COLUMNS));
                breached[from..=to.max(from)].fill('▀');
            }
            let line = format!("{:>9} │{}", "breached", String::from_iter(breached));
            writeln!(f, "{}", line.trim_end())?;
        }
        let axis = format!("┴{}", "─".repeat(TICK_COLUMNS - 1)).repeat(TICKS);
        writeln!(f, "{:>9} └{axis}┴", "")?;
        write!(f, "{:>11}", "")?;
        for tick in 0..TICKS {
            write!(f, "{:TICK_COLUMNS$}", self.label(tick))?;
        }
        write!(f, "{} UTC", self.label(TICKS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_rises_from_midnight_to_midnight() {
        let minute = |minute: i64| Timestamp::from_millis(minute * 60_000);
        #[expect(clippy::cast_precision_loss, reason = "minutes of a day")]
        let samples: Vec<_> = (0..1440).map(|at| Sample::new(minute(at), at as f64)).collect();
        let plot = Plot {
            title: "ramp (min)".to_owned(),
            from: minute(0),
            to: minute(1440),
            samples: &samples,
            limits: vec![("max", 720.0)],
            breaches: vec![(minute(720), minute(1439))],
        };
        let shown = plot.to_string();
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{shown}");
        assert_eq!(lines[0], "  ramp (min)");
        assert!(lines[1].starts_with("   1439.0 ┤⠀⠀") && lines[1].ends_with('⠉'), "{shown}");
        assert!(lines[6].starts_with("      0.0 ┤⣀"), "{shown}");
        assert!(lines[3].ends_with("⡀⠀ max 720"), "{shown}");
        let breached = lines[7].chars().filter(|c| *c == '▀').count();
        assert_eq!((lines[7].chars().count(), breached), (11 + COLUMNS, COLUMNS / 2), "{shown}");
        assert_eq!(lines[9].split_whitespace().count(), 10, "{shown}");
        assert_eq!(lines.len(), 10);
    }

    #[test]
    fn constant_readings_are_a_line_in_the_middle() {
        let (from, to) = (Timestamp::from_millis(0), Timestamp::from_millis(3 * DAY_MILLIS));
        let samples = [Sample::new(from, 5.0)];
        let plot = Plot {
            title: String::new(),
            from,
            to,
            samples: &samples,
            limits: vec![],
            breaches: vec![],
        };
        let shown = plot.to_string();
        assert!(shown.lines().nth(4).is_some_and(|line| line.contains('⠁')));
        assert!(shown.ends_with("01-04 UTC"), "{shown}");
    }
}
