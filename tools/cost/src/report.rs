//! The tables of docs/cost.md.

use std::fmt::Write;

use anyhow::Result;

use crate::{
    authorizer::{FIRST_USE_WRITE_UNITS, READ_UNITS},
    counted::Bundles,
    data::{Amounts, Item, Quota},
    docs::table,
    event_report,
    inputs::Inputs,
    onboarding::{self, Implementation},
    quotas::onboarding_uses,
    readings::{Capacity, Design, Storage, add},
    units::{DAYS, SECONDS},
};

const MILLION: f64 = 1e6;
/// The loads in the tables, in readings per day.
const LOADS: [(&str, f64); 3] =
    [("1 M a day", MILLION), ("50 M a day", 50.0 * MILLION), ("1 B a day", 1000.0 * MILLION)];
/// The load for which the cost of a million readings is computed.
const TYPICAL_LOAD: f64 = 50.0 * MILLION;

/// Returns the tables by their names in the page.
pub fn tables(inputs: &Inputs) -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        ("figures", figures(inputs)?),
        ("million", million(inputs)?),
        ("check", check(inputs)?),
        ("authorizer", authorizer(inputs)?),
        ("month", month(inputs)?),
        ("stream", stream(inputs)?),
        ("onboarding", onboarding(inputs)?),
        ("quotas", quotas(inputs)?),
        ("saga-quotas", saga_quotas(inputs)?),
        ("events", event_report::events(inputs)?),
        ("event-consumers", event_report::consumers(inputs)?),
        ("event-quotas", event_report::quotas(inputs)?),
        ("prices", prices(inputs)?),
    ])
}

/// Formats a number with three significant digits.
pub(crate) fn format_number(number: f64) -> String {
    if number.fract() == 0.0 && number.abs() < 1000.0 {
        return number.to_string();
    }
    #[expect(clippy::cast_possible_truncation, reason = "of an amount of money")]
    let magnitude = number.abs().log10().floor() as i32;
    let unit = 10_f64.powi(magnitude - 2);
    let rounded = (number / unit).round() * unit;
    let places = usize::try_from(2 - magnitude).unwrap_or(0);
    grouped(&format!("{rounded:.places$}"))
}

/// Adds commas as thousands separators.
fn grouped(number: &str) -> String {
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(a, b)| (a, Some(b)));
    let mut text = String::new();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if let Some(fraction) = fraction {
        text.push('.');
        text.push_str(fraction);
    }
    text
}

fn length(bundles: &Bundles) -> &'static str {
    match bundles.minutes {
        0 => "one reading per message",
        15 => "15 minutes",
        60 => "an hour",
        _ => "a day",
    }
}

pub(crate) fn bold(text: &str) -> String {
    format!("**{text}**")
}

/// Returns only the amounts of these items.
fn select(amounts: &Amounts, items: &[Item]) -> Amounts {
    let selected = amounts.iter().filter(|(item, _)| items.contains(item));
    selected.map(|(item, amount)| (*item, *amount)).collect()
}

fn figures(inputs: &Inputs) -> Result<String> {
    let mut text = String::new();
    let store = inputs.figures.function("store-readings")?;
    let python = inputs.figures.peer("python")?;
    let line = |what: &str, micros: f64| vec![what.to_owned(), format_number(micros)];
    let rows = [
        line("store-readings: an invocation", store.millis() * 1000.0),
        line("store-readings: a row", inputs.figures.row_millis() * 1000.0),
        line(
            "store-readings: each further sample of a row",
            inputs.figures.sample_millis()? * 1000.0,
        ),
        line(
            "configure-alerting: an invocation",
            inputs.figures.function("configure-alerting")?.millis() * 1000.0,
        ),
        line(
            "configure-alerting with Powertools for Python: an invocation",
            python.millis() * 1000.0,
        ),
        line(
            "configure-alerting with Powertools for Python: a call",
            python.millis() * 1000.0 / python.calls().0,
        ),
    ];
    text.push_str(&table(&["CPU time of a whole core", "µs"], &[false, true], &rows)?);
    Ok(text)
}

const LINES: [(&str, &[Item]); 6] = [
    ("stream", &[Item::StreamHour, Item::StreamInGigabyte, Item::StreamOutGigabyte]),
    ("functions: requests", &[Item::Request]),
    ("functions: time", &[Item::GigabyteSecond]),
    ("DynamoDB: writes and reads", &[Item::WriteUnit, Item::ReadUnit]),
    ("logs", &[Item::LogGigabyte]),
    ("traces", &[Item::Trace]),
];

/// The cost of a million readings at the typical load, by the length of the bundles.
fn million(inputs: &Inputs) -> Result<String> {
    let a_million = MILLION / (TYPICAL_LOAD * DAYS);
    let designs: Vec<_> = inputs.readings.bundles.iter().map(own_design).collect();
    let bills = designs
        .iter()
        .map(|design| {
            let storing = design.storing(inputs, TYPICAL_LOAD, Capacity::OnDemand)?;
            Ok(add(storing, &design.alerting(inputs, TYPICAL_LOAD)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let usd = |amounts: &Amounts| inputs.prices.cost_of(amounts) * a_million;
    let line = |what: &str, cells: Vec<f64>| {
        let cells = cells.iter().map(|usd| format_number(*usd));
        [what.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> = LINES
        .iter()
        .map(|(what, items)| {
            line(what, bills.iter().map(|bill| usd(&select(bill, items))).collect())
        })
        .collect();
    let sum = bills.iter().map(|bill| bold(&format_number(usd(bill))));
    rows.push([bold("total: stored, and compared with limits")].into_iter().chain(sum).collect());
    let http = designs.iter().map(|design| Ok(usd(&design.over_http(inputs, TYPICAL_LOAD)?)));
    rows.push(line("in addition if sent over HTTP", http.collect::<Result<_>>()?));
    let retained = designs.iter().map(|design| Ok(usd(&design.retention(inputs, TYPICAL_LOAD)?)));
    rows.push(line("storage in each following month", retained.collect::<Result<_>>()?));
    let lengths = designs.iter().map(|design| length(design.bundles));
    let head: Vec<_> = ["USD for a million readings"].into_iter().chain(lengths).collect();
    table(&head, &[false, true, true, true], &rows)
}

/// The cost of a check of the authorizer.
fn check(inputs: &Inputs) -> Result<String> {
    let ours = inputs.figures.function("authorise-caller")?;
    let instructions = ours.instructions()?;
    let line = |what: &str, number: f64| vec![what.to_owned(), format_number(number)];
    let rows = [
        line(
            "M instructions, from the start of the process to the first response",
            instructions.to_first_answer / MILLION,
        ),
        line("M instructions, warm", instructions.warm / MILLION),
        line("µs of CPU time, warm", ours.millis() * 1000.0),
        line("read units", READ_UNITS),
        line("write units, on the first use of the key on a day", FIRST_USE_WRITE_UNITS),
    ];
    table(&["a check of a key", ""], &[false, true], &rows)
}

/// The cost of the authorizer for a million readings at the typical load, by the length of the bundles.
fn authorizer(inputs: &Inputs) -> Result<String> {
    let a_million = MILLION / (TYPICAL_LOAD * DAYS);
    let bundles = &inputs.readings.bundles;
    let bills = bundles
        .iter()
        .map(|bundles| own_design(bundles).authorizing(inputs, TYPICAL_LOAD))
        .collect::<Result<Vec<_>>>()?;
    let row = |what: &str, of: &dyn Fn(&Amounts) -> f64| {
        let cells = bills.iter().map(|bill| format_number(of(bill) * a_million));
        [what.to_owned()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let mut rows = vec![
        row("checks", &|bill| bill[&Item::Request]),
        row("read units", &|bill| bill[&Item::ReadUnit]),
        row("write units", &|bill| bill[&Item::WriteUnit]),
    ];
    let lines = LINES.iter().filter(|(_, items)| !items.contains(&Item::StreamHour));
    rows.extend(lines.map(|(what, items)| {
        row(&format!("USD, {what}"), &|bill| inputs.prices.cost_of(&select(bill, items)))
    }));
    let sum = row("USD, total", &|bill| inputs.prices.cost_of(bill));
    rows.push(sum.iter().map(|cell| bold(cell)).collect());
    let head: Vec<_> = ["for a million readings over HTTP"]
        .into_iter()
        .chain(bundles.iter().map(length))
        .collect();
    table(&head, &[false, true, true, true], &rows)
}

fn own_design(bundles: &Bundles) -> Design<'_> {
    Design { bundles, storage: Storage::Series }
}

/// Returns the designs that are compared, with their names.
fn designs(inputs: &Inputs) -> Vec<(&'static str, Design<'_>)> {
    let counted = &inputs.readings;
    let mut designs = Vec::new();
    for (name, storage) in [
        ("Fieldstation: a row for each series", Storage::Series),
        ("a row for each reading, Rust", Storage::Item),
        ("a row for each reading, Powertools for Python", Storage::Powertools),
    ] {
        designs.extend(counted.bundles.iter().map(|bundles| (name, Design { bundles, storage })));
        if storage != Storage::Series {
            designs.push((name, Design { bundles: &counted.single, storage }));
        }
    }
    designs
}

/// The monthly cost of storing, by design and load. Alerts are not included, because the other designs have none.
fn month(inputs: &Inputs) -> Result<String> {
    let mut rows = Vec::new();
    let mut bars = Vec::new();
    for (name, design) in designs(inputs) {
        let mut row = vec![name.to_owned(), length(design.bundles).to_owned()];
        for (_, load) in LOADS {
            let usd = inputs.prices.cost_of(&design.storing(inputs, load, Capacity::OnDemand)?);
            row.push(format_number(usd));
        }
        let max_load = LOADS[2].1;
        let peak = design.peak(inputs, max_load)?;
        let shards = design.shards(inputs, peak)?.max(inputs.assumed.least_shards);
        let records = max_load / design.record(inputs)?.readings / SECONDS;
        let concurrent = design.flow(inputs, records, shards)?.concurrency();
        let lanes = shards * inputs.assumed.mappings.store_readings.parallelization_factor;
        let busy = format!("{} of {}", format_number(concurrent), format_number(lanes));
        row.push(if concurrent > lanes { bold(&busy) } else { busy });
        row.push(format_number(inputs.prices.cost_of(&design.retention(inputs, max_load)?)));
        bars.push(inputs.prices.cost_of(&design.storing(inputs, max_load, Capacity::OnDemand)?));
        rows.push(row);
    }
    let mut head = vec!["USD a month, without alerts", "bundles of"];
    head.extend(LOADS.map(|(name, _)| name));
    head.extend(["concurrent functions, 1 B", "storage of a month's rows, 1 B"]);
    let mut text = table(&head, &[false, false, true, true, true, true, true], &rows)?;
    let names = ["row/series 15 min", "1 h", "1 d", "row/reading Rust", "Powertools", "1 message"];
    let charted = [bars[0], bars[1], bars[2], bars[3], bars[7], bars[10]];
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let charted: Vec<_> = charted.iter().map(|usd| format!("{usd:.0}")).collect();
    write!(
        text,
        "\n```mermaid\nxychart-beta\n  title \"1 B readings a day: USD a month\"\n  \
         x-axis [{}]\n  y-axis \"USD\"\n  bar [{}]\n```\n",
        names.join(", "),
        charted.join(", ")
    )?;
    Ok(text)
}

/// The cost of the stream, on demand and provisioned.
fn stream(inputs: &Inputs) -> Result<String> {
    let items = [
        Item::StreamHour,
        Item::StreamInGigabyte,
        Item::StreamOutGigabyte,
        Item::ShardHour,
        Item::PutPayloadUnit,
    ];
    let mut rows = Vec::new();
    for bundles in &inputs.readings.bundles {
        let design = own_design(bundles);
        for (name, load) in LOADS {
            let peak = design.peak(inputs, load)?;
            let record = design.record(inputs)?;
            let cost = |capacity| -> Result<f64> {
                let mut amounts = design.storing(inputs, load, capacity)?;
                if capacity == Capacity::OnDemand {
                    amounts = add(amounts, &select(&design.alerting(inputs, load)?, &items));
                }
                Ok(inputs.prices.cost_of(&select(&amounts, &items)))
            };
            rows.push(vec![
                length(bundles).to_owned(),
                name.to_owned(),
                format_number(load / record.readings / SECONDS),
                format_number(peak),
                format_number(peak * record.bytes / 1e6),
                format_number(cost(Capacity::OnDemand)?),
                format_number(design.shards(inputs, peak)?),
                format_number(cost(Capacity::Provisioned)?),
            ]);
        }
    }
    let head = [
        "bundles of",
        "readings",
        "records/s, mean",
        "records/s at the peak",
        "MB/s at the peak",
        "on demand, USD a month",
        "shards",
        "provisioned, USD a month",
    ];
    table(&head, &[false, false, true, true, true, true, true, true], &rows)
}

/// The cost of an onboarding, by item.
fn onboarding(inputs: &Inputs) -> Result<String> {
    let bills = [
        onboarding::done(inputs, Implementation::Own)?,
        onboarding::done(inputs, Implementation::Powertools)?,
        onboarding::undone(inputs, Implementation::Own)?,
        onboarding::undone(inputs, Implementation::Powertools)?,
        onboarding::alert(inputs)?,
    ];
    let thousand = 1000.0;
    let what: [(&str, Item, f64, &str); 9] = [
        ("state transitions", Item::Transition, 1.0, ""),
        ("write units", Item::WriteUnit, 1.0, ""),
        ("functions: requests", Item::Request, 1.0, ""),
        ("functions: time", Item::GigabyteSecond, 1.0, " GB-s"),
        ("events on the bus", Item::Event, 1.0, ""),
        ("requests to queues", Item::QueueRequest, 1.0, ""),
        ("requests to the API", Item::ApiRequest, 1.0, ""),
        ("logs", Item::LogGigabyte, crate::units::GIGABYTE / 1000.0, " kB"),
        ("traces, upper bound", Item::Trace, 1.0, ""),
    ];
    let mut rows = Vec::new();
    for (name, item, factor, unit) in what {
        let mut row = vec![name.to_owned()];
        for bill in &bills {
            let amount = bill.get(&item).copied().unwrap_or_default();
            let usd = inputs.prices.cost_of_item(item, amount * thousand);
            row.push(format!("{}{unit}", format_number(amount * factor)));
            row.push(format_number(usd));
        }
        rows.push(row);
    }
    let mut sum = vec![bold("total")];
    for bill in &bills {
        sum.extend([String::new(), bold(&format_number(inputs.prices.cost_of(bill) * thousand))]);
    }
    rows.push(sum);
    let head = [
        "",
        "successful",
        "USD for 1,000",
        "with Powertools",
        "USD",
        "fails at its last step",
        "USD",
        "with Powertools",
        "USD",
        "an alert",
        "USD",
    ];
    let mut right = [true; 11];
    right[0] = false;
    table(&head, &right, &rows)
}

/// The use of the quotas by readings.
fn quotas(inputs: &Inputs) -> Result<String> {
    let [quarters, hours, days] = &inputs.readings.bundles[..] else {
        anyhow::bail!("expected three lengths of bundles");
    };
    let (_, max_load) = LOADS[2];
    let mut columns = LOADS.map(|(_, load)| (own_design(quarters), load)).to_vec();
    columns.extend([(own_design(hours), max_load), (own_design(days), max_load)]);
    columns.push((Design { bundles: quarters, storage: Storage::Item }, max_load));
    let uses = columns
        .iter()
        .map(|(design, load)| design.uses(inputs, *load))
        .collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for limit in uses[0].keys() {
        let Some(quota) = inputs.quotas.get(limit) else {
            anyhow::bail!("there is no quota {limit:?}");
        };
        let default = format!("{} {}", grouped(&quota.value.to_string()), quota.unit);
        let mut row = vec![linked_name(quota), default.trim_end().to_owned()];
        row.extend(uses.iter().map(|used| percent(used[limit] / quota.value)));
        row.extend([adjustable(quota), quota.raise.clone()]);
        rows.push((uses[2][limit] / quota.value, row));
    }
    rows.sort_by(|one, other| other.0.total_cmp(&one.0));
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    let head = [
        "quota",
        "default",
        "1 M",
        "50 M",
        "1 B",
        "1 B, bundles of an hour",
        "1 B, bundles of a day",
        "1 B, a row for each reading",
        "adjustable",
        "what to do",
    ];
    table(&head, &[false, true, true, true, true, true, true, true, false, false], &rows)
}

/// Returns the quota's name as a link to its source.
pub(crate) fn linked_name(quota: &Quota) -> String {
    let Quota { name, source, .. } = quota;
    let prefix = if source.starts_with("https:") { "" } else { "../" };
    format!("[{name}]({prefix}{source})")
}

pub(crate) fn adjustable(quota: &Quota) -> String {
    if quota.adjustable { "yes" } else { "no" }.to_owned()
}

pub(crate) fn percent(part: f64) -> String {
    let text = format!("{} %", format_number(part * 100.0));
    if part > 1.0 { bold(&text) } else { text }
}

/// The number of onboardings per second that the quotas allow.
fn saga_quotas(inputs: &Inputs) -> Result<String> {
    let mut rows = Vec::new();
    for (limit, used) in onboarding_uses(inputs)? {
        let Some(quota) = inputs.quotas.get(&limit) else {
            anyhow::bail!("there is no quota {limit:?}");
        };
        let per_second = quota.value / used;
        rows.push((
            per_second,
            vec![
                linked_name(quota),
                format_number(quota.value),
                format_number(used),
                format_number(per_second),
                format_number(per_second * SECONDS),
                adjustable(quota),
                quota.raise.clone(),
            ],
        ));
    }
    rows.sort_by(|one, other| one.0.total_cmp(&other.0));
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    let head = [
        "quota",
        "default",
        "use by an onboarding",
        "onboardings a second",
        "onboardings a day",
        "adjustable",
        "what to do",
    ];
    table(&head, &[false, true, true, true, true, false, false], &rows)
}

fn prices(inputs: &Inputs) -> Result<String> {
    let rows: Vec<_> = Item::ALL
        .into_iter()
        .map(|item| {
            let price = inputs.prices.price(item);
            vec![
                price.unit.clone(),
                format!("{}", price.usd),
                grouped(&price.per.to_string()),
                price.region.clone(),
                price.as_of.clone(),
                price.source.clone(),
            ]
        })
        .collect();
    let head = ["what", "USD", "for", "region", "as of", "source"];
    table(&head, &[false, true, true, false, false, false], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (number, text) in [
            (0.0, "0"),
            (18.0, "18"),
            (0.001_234_5, "0.00123"),
            (0.999_9, "1.000"),
            (6.666, "6.67"),
            (66.66, "66.7"),
            (1234.5, "1,230"),
            (1_234_567.0, "1,230,000"),
        ] {
            assert_eq!(format_number(number), text);
        }
    }

    #[test]
    fn a_use_above_the_quota_is_bold() {
        assert_eq!(percent(0.25), "25 %");
        assert_eq!(percent(1.5), "**150 %**");
    }
}
