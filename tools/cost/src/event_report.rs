//! The tables of docs/cost.md about events.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::{
    data::Amounts,
    docs::table,
    events::{Delivery, Events},
    inputs::Inputs,
    readings::{Capacity, add},
    report::{adjustable, bold, format_number, linked_name, percent},
};

const MILLION: f64 = 1e6;
/// The loads in the tables, in events per day.
const LOADS: [f64; 3] = [0.1 * MILLION, MILLION, TYPICAL_LOAD];
const TYPICAL_LOAD: f64 = 50.0 * MILLION;
/// The numbers of consumers in the table.
const CONSUMERS: [f64; 7] = [1.0, 2.0, 5.0, 6.0, 20.0, 21.0, 50.0];
/// The numbers of consumers in the picture.
const CHARTED: [f64; 6] = [1.0, 5.0, 10.0, 20.0, 30.0, 50.0];
/// The part of the events that a consumer of few types gets.
const FEW: f64 = 0.01;
const DELIVERIES: [(&str, Delivery, f64); 7] = [
    ("stream, shared", Delivery::Shared(Capacity::OnDemand), 1.0),
    ("stream, fan-out", Delivery::FanOut(Capacity::OnDemand), 1.0),
    ("shards, shared", Delivery::Shared(Capacity::Provisioned), 1.0),
    ("shards, fan-out", Delivery::FanOut(Capacity::Provisioned), 1.0),
    ("bus, function", Delivery::Function, 1.0),
    ("bus, queue", Delivery::Queue, 1.0),
    ("bus, queue, 1 % of the events", Delivery::Queue, FEW),
];

/// The monthly cost of appended events, by what causes it.
pub fn events(inputs: &Inputs) -> Result<String> {
    let usd = |amounts: &Amounts| inputs.prices.cost_of(amounts);
    let columns = LOADS.map(|load| Events::a_day(inputs, load));
    let of_columns =
        columns.iter().map(|it| it.amounts(Capacity::OnDemand)).collect::<Result<Vec<_>>>()?;
    let typical = of_columns.last().context("no loads")?;
    let a_million = MILLION / (TYPICAL_LOAD * crate::units::DAYS);
    let mut rows = Vec::new();
    for (index, (what, amounts)) in typical.iter().enumerate() {
        let mut row = vec![(*what).to_owned()];
        row.extend(of_columns.iter().map(|column| format_number(usd(&column[index].1))));
        row.push(format_number(usd(amounts) * a_million));
        rows.push(row);
    }
    let totals: Vec<_> = of_columns
        .iter()
        .map(|column| column.iter().fold(Amounts::new(), |all, (_, it)| add(all, it)))
        .map(|all| usd(&all))
        .collect();
    let mut row = vec![bold("total, without consumers")];
    row.extend(totals.iter().map(|total| bold(&format_number(*total))));
    row.push(bold(&format_number(totals[LOADS.len() - 1] * a_million)));
    rows.push(row);
    for (what, amounts) in [
        ("the stream with shards instead", columns.map(|it| it.stream(Capacity::Provisioned))),
        ("the effects of watch-network", columns.map(|it| it.effects())),
        ("storage of a month's events, in each following month", columns.map(|it| it.retention())),
    ] {
        let mut row = vec![what.to_owned()];
        row.extend(amounts.iter().map(|amounts| format_number(usd(amounts))));
        row.push(format_number(usd(&amounts[LOADS.len() - 1]) * a_million));
        rows.push(row);
    }
    let head = [
        "USD a month",
        "100,000 a day",
        "1 M a day",
        "50 M a day",
        "a million events, at 50 M a day",
    ];
    table(&head, &[false, true, true, true, true], &rows)
}

/// The monthly cost of consumers, by their number.
pub fn consumers(inputs: &Inputs) -> Result<String> {
    let events = Events::a_day(inputs, TYPICAL_LOAD);
    let mut rows = Vec::new();
    for number in CONSUMERS {
        let mut row = vec![number.to_string()];
        for (_, delivery, part) in DELIVERIES {
            let usd = events.delivery(delivery, number, part)?;
            row.push(usd.map_or_else(|| "not possible".to_owned(), format_number));
        }
        rows.push(row);
    }
    let mut head = vec!["consumers, USD a month"];
    head.extend(DELIVERIES.map(|(name, ..)| name));
    let mut text = table(&head, &[true; 8], &rows)?;
    let line = |delivery, part| -> Result<String> {
        let points = CHARTED.map(|number| events.delivery(delivery, number, part));
        let points = points.into_iter().map(|usd| {
            let usd = usd?.context("a charted number of consumers is not possible")?;
            Ok(format!("{usd:.0}"))
        });
        Ok(points.collect::<Result<Vec<_>>>()?.join(", "))
    };
    write!(
        text,
        "\n```mermaid\nxychart-beta\n  title \"50 M events a day: USD a month by consumers\"\n  x-axis [{}]\n  \
         y-axis \"USD\"\n  line [{}]\n  line [{}]\n  line [{}]\n```\n",
        CHARTED.map(|number| number.to_string()).join(", "),
        line(Delivery::Queue, 1.0)?,
        line(Delivery::FanOut(Capacity::OnDemand), 1.0)?,
        line(Delivery::Queue, FEW)?,
    )?;
    let shared = events.break_even(Delivery::Shared(Capacity::OnDemand))?;
    let fan_out = events.break_even(Delivery::FanOut(Capacity::OnDemand))?;
    write!(
        text,
        "\nThe lines, from the top: the bus with queues, the stream with fan-out, and the bus with queues for 1 % of the \
         events.\n\nA consumer of the bus with a queue costs less than one of the stream if its rule selects less than {} of \
         the events (compared with shared throughput: {}).\n",
        percent(fan_out),
        percent(shared),
    )?;
    Ok(text)
}

/// The use of the quotas, the highest first.
pub fn quotas(inputs: &Inputs) -> Result<String> {
    let events = Events::a_day(inputs, TYPICAL_LOAD);
    let mean = events.uses(events.rate())?;
    let mut rows = Vec::new();
    for (limit, peak) in events.uses(events.peak())? {
        let quota = inputs.quotas.get(&limit).with_context(|| format!("no quota {limit:?}"))?;
        rows.push((
            peak / quota.value,
            vec![
                linked_name(quota),
                format!("{} {}", format_number(quota.value), quota.unit).trim_end().to_owned(),
                percent(mean[&limit] / quota.value),
                percent(peak / quota.value),
                format_number(events.peak() * quota.value / peak),
                adjustable(quota),
                quota.raise.clone(),
            ],
        ));
    }
    rows.sort_by(|one, other| other.0.total_cmp(&one.0));
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    let head = [
        "quota",
        "default",
        "50 M a day, mean",
        "at the peak",
        "events a second",
        "adjustable",
        "what to do",
    ];
    table(&head, &[false, true, true, true, true, false, false], &rows)
}
