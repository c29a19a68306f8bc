//! The cost of readings, as this stack stores them and as other designs would.

use anyhow::{Result, ensure};

use crate::{
    counted::Bundles,
    data::{Amounts, Item},
    inputs::Inputs,
    lambda::{Work, batch, invocations, month},
    units::{DAYS, GIGABYTE, HOURS, SECONDS},
};

/// The storage design.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A packed row for each series of a bundle: this stack.
    Series,
    /// A row for each reading, written by the same function.
    Item,
    /// A row for each reading, and an idempotency record for each stream record: Powertools for Python.
    Powertools,
}

/// The bundles and the storage design.
#[derive(Clone, Copy, Debug)]
pub struct Design<'a> {
    /// The bundles.
    pub bundles: &'a Bundles,
    /// The storage design.
    pub storage: Storage,
}

/// The capacity mode of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// On demand: charged by the gigabyte.
    OnDemand,
    /// Provisioned: charged by the shard, for the number of shards that the peak needs.
    Provisioned,
}

/// The average record of the stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Record {
    /// The number of readings in it.
    pub readings: f64,
    /// The size of data and key.
    pub bytes: f64,
    /// The kilobytes that an on-demand stream charges.
    pub kilobytes: f64,
    /// The PUT payload units that provisioned shards charge.
    pub put_payload_units: f64,
    /// The write units of its rows.
    pub write_units: f64,
    /// The stored size of its rows, in bytes.
    pub row_bytes: f64,
    /// The work of the function that stores it.
    pub work: Work,
}

/// The stream and its function at a given rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flow {
    /// Records per second.
    pub records: f64,
    /// The number of shards.
    pub shards: f64,
    /// Invocations per second.
    pub invocations: f64,
    /// The duration of an invocation.
    pub millis: f64,
}

impl Flow {
    /// Returns the number of concurrent executions.
    #[must_use]
    pub fn concurrency(&self) -> f64 {
        self.invocations * self.millis / 1000.0
    }
}

/// Adds both amounts.
#[must_use]
pub fn add(mut one: Amounts, other: &Amounts) -> Amounts {
    for (item, amount) in other {
        *one.entry(*item).or_default() += amount;
    }
    one
}

impl Design<'_> {
    /// Returns the average record.
    pub fn record(&self, inputs: &Inputs) -> Result<Record> {
        let Inputs { assumed, figures, readings: counted, .. } = inputs;
        let Bundles { bundles, readings, rows, write_units, row_bytes, plain, .. } = self.bundles;
        ensure!(*bundles > 0 && counted.single.readings > 0, "the counts are empty");
        let count = f64::from(*bundles);
        let each = |of: u64| per(of, count);
        let readings = f64::from(*readings) / count;
        let single = f64::from(counted.single.readings);
        let memory = inputs.memory("store-readings");
        let ours = figures.function("store-readings")?;
        let base_work = Work {
            memory,
            invocation: ours.millis(),
            record: 0.0,
            wait: 0.0,
            side_by_side: assumed.side_by_side,
            log_bytes: ours.log_bytes(),
        };
        let (write_units, row_bytes, work) = match self.storage {
            Storage::Series => {
                let rows = f64::from(*rows) / count;
                let samples = (readings - rows) * figures.sample_millis()?;
                let record = rows * figures.row_millis() + samples;
                let wait = (rows / assumed.puts_at_once).ceil() * assumed.aws_millis;
                (write_units / count, each(*row_bytes), Work { record, wait, ..base_work })
            }
            Storage::Item => {
                let record = readings * figures.row_millis();
                let wait = (readings / assumed.puts_at_once).ceil() * assumed.aws_millis;
                let units = counted.single.write_units / single * readings;
                let bytes = per(counted.single.row_bytes, single) * readings;
                (units, bytes, Work { record, wait, ..base_work })
            }
            Storage::Powertools => {
                let python = figures.peer("python")?;
                let puts = (readings / assumed.peer_items_a_call).ceil();
                let calls = assumed.peer_record_calls + puts;
                let work = Work {
                    memory,
                    invocation: 0.0,
                    record: calls * python.millis() / python.calls().0,
                    wait: calls * assumed.aws_millis,
                    // The batch processor of Powertools processes one record after the other.
                    side_by_side: 1.0,
                    log_bytes: python.log_bytes(),
                };
                let units = counted.single.write_units / single * readings;
                let bytes = per(counted.single.row_bytes, single) * readings;
                (units + assumed.peer_record_units, bytes, work)
            }
        };
        Ok(Record {
            readings,
            bytes: each(plain.bytes),
            kilobytes: each(plain.kilobytes),
            put_payload_units: each(plain.put_payload_units),
            write_units,
            row_bytes,
            work,
        })
    }

    /// Returns the records per second at the peak. Every site sends its bundle soon after the bundle's end.
    pub fn peak(&self, inputs: &Inputs, readings_a_day: f64) -> Result<f64> {
        let Record { readings, .. } = self.record(inputs)?;
        let mean = readings_a_day / readings / SECONDS;
        if self.bundles.minutes == 0 {
            return Ok(mean);
        }
        let bundles_a_day = 24.0 * 60.0 / f64::from(self.bundles.minutes);
        let sites = readings_a_day / readings / bundles_a_day;
        Ok(mean.max(sites / inputs.assumed.burst_seconds))
    }

    /// Returns the number of shards that the peak needs.
    pub fn shards(&self, inputs: &Inputs, peak: f64) -> Result<f64> {
        let Record { bytes, .. } = self.record(inputs)?;
        let by_bytes = peak * bytes / inputs.assumed.shard_bytes;
        Ok(by_bytes.max(peak / inputs.assumed.shard_records).ceil().max(1.0))
    }

    /// Returns the flow of this number of records per second through the function that stores them.
    pub fn flow(&self, inputs: &Inputs, records: f64, shards: f64) -> Result<Flow> {
        let Inputs { assumed, .. } = inputs;
        let Record { bytes, work, .. } = self.record(inputs)?;
        let mapping = assumed.mappings.store_readings;
        let lanes = shards * mapping.parallelization_factor;
        let max_batch = batch(mapping, bytes, assumed);
        let invocations = invocations(records, lanes, max_batch, assumed.polls);
        let millis = work.millis(records / invocations);
        Ok(Flow { records, shards, invocations, millis })
    }

    /// Returns the monthly amounts of storing: the stream, the function and the rows.
    pub fn storing(
        &self,
        inputs: &Inputs,
        readings_a_day: f64,
        capacity: Capacity,
    ) -> Result<Amounts> {
        let record = self.record(inputs)?;
        let records = readings_a_day / record.readings / SECONDS;
        let shards = self.shards(inputs, self.peak(inputs, readings_a_day)?)?;
        let (shards, stream) = match capacity {
            Capacity::OnDemand => (
                shards.max(inputs.assumed.least_shards),
                add(
                    Amounts::from([
                        (Item::StreamHour, HOURS),
                        (Item::StreamInGigabyte, gigabytes(records, &record)),
                    ]),
                    &stream_read(records, &record),
                ),
            ),
            Capacity::Provisioned => (
                shards,
                Amounts::from([
                    (Item::ShardHour, shards * HOURS),
                    (Item::PutPayloadUnit, records * DAYS * SECONDS * record.put_payload_units),
                ]),
            ),
        };
        let flow = self.flow(inputs, records, shards)?;
        let function = month(flow.invocations, flow.millis, &record.work, &inputs.assumed);
        let written = records * DAYS * SECONDS * record.write_units;
        Ok(add(add(stream, &function), &Amounts::from([(Item::WriteUnit, written)])))
    }

    /// Returns the flow of this number of records per second through detect-breaches, and its work.
    pub fn alerting_flow(
        &self,
        inputs: &Inputs,
        records: f64,
        shards: f64,
    ) -> Result<(Flow, Work)> {
        let Inputs { assumed, figures, .. } = inputs;
        let record = self.record(inputs)?;
        let mapping = assumed.mappings.detect_breaches;
        let lanes = shards * mapping.parallelization_factor;
        let max_batch = batch(mapping, record.bytes, assumed);
        let invocations = invocations(records, lanes, max_batch, assumed.polls);
        let ours = figures.function("detect-breaches")?;
        let work = Work {
            memory: inputs.memory("detect-breaches"),
            invocation: ours.millis(),
            // An estimate from the figures of store-readings: decoding is most of its CPU time of a sample, and a call
            // to DynamoDB costs the same in both functions.
            record: figures.row_millis() + record.readings * figures.sample_millis()?,
            wait: assumed.aws_millis,
            side_by_side: assumed.side_by_side,
            log_bytes: ours.log_bytes(),
        };
        let millis = work.millis(records / invocations);
        Ok((Flow { records, shards, invocations, millis }, work))
    }

    /// Returns the monthly amounts of detect-breaches: another read of the stream, the function and its reads.
    pub fn alerting(&self, inputs: &Inputs, readings_a_day: f64) -> Result<Amounts> {
        let record = self.record(inputs)?;
        let records = readings_a_day / record.readings / SECONDS;
        let shards = self.shards(inputs, self.peak(inputs, readings_a_day)?)?;
        let shards = shards.max(inputs.assumed.least_shards);
        let (flow, work) = self.alerting_flow(inputs, records, shards)?;
        let function = month(flow.invocations, flow.millis, &work, &inputs.assumed);
        let units = per(self.bundles.alerting_read_units, f64::from(self.bundles.bundles));
        let units = Amounts::from([(Item::ReadUnit, records * DAYS * SECONDS * units)]);
        Ok(add(add(function, &units), &stream_read(records, &record)))
    }

    /// Returns the additional monthly amounts if each bundle is sent with its own HTTP request.
    pub fn over_http(&self, inputs: &Inputs, readings_a_day: f64) -> Result<Amounts> {
        let Inputs { assumed, figures, .. } = inputs;
        let record = self.record(inputs)?;
        let records = readings_a_day / record.readings / SECONDS;
        let ours = figures.function("accept-readings")?;
        let work = Work {
            memory: inputs.memory("accept-readings"),
            invocation: ours.millis(),
            record: record.readings * figures.sample_millis()?,
            wait: assumed.aws_millis,
            side_by_side: 1.0,
            log_bytes: ours.log_bytes() + assumed.access_log_bytes,
        };
        let function = month(records, work.millis(1.0), &work, assumed);
        Ok(add(function, &Amounts::from([(Item::ApiRequest, records * DAYS * SECONDS)])))
    }

    /// Returns the monthly amounts of storing a month's readings afterwards.
    pub fn retention(&self, inputs: &Inputs, readings_a_day: f64) -> Result<Amounts> {
        let record = self.record(inputs)?;
        let gigabytes = readings_a_day / record.readings * DAYS * record.row_bytes / GIGABYTE;
        Ok(Amounts::from([
            (Item::StoredGigabyte, gigabytes),
            (Item::RecoverableGigabyte, gigabytes),
        ]))
    }
}

fn gigabytes(records: f64, record: &Record) -> f64 {
    records * DAYS * SECONDS * record.kilobytes * 1024.0 / GIGABYTE
}

fn stream_read(records: f64, record: &Record) -> Amounts {
    Amounts::from([(Item::StreamOutGigabyte, gigabytes(records, record))])
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per(of: u64, count: f64) -> f64 {
    of as f64 / count
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;
    use crate::{counted::Records, data::Assumptions};

    /// Assumptions for easy arithmetic. Values that the tests do not set are those of the file.
    pub(crate) fn assumed() -> Assumptions {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("assumptions.json");
        let file: Assumptions = crate::data::read(&file).expect("the assumptions are valid");
        Assumptions {
            aws_millis: 5.0,
            platform_log_bytes: 500.0,
            log_line_bytes: 25.0,
            log_lines: 4.0,
            traces_certain: 1.0,
            traces_part: 0.05,
            polls: 1.0,
            least_shards: 4.0,
            largest_event: 6e6,
            record_envelope: 500.0,
            burst_seconds: 300.0,
            ..file
        }
    }

    /// Inputs of the repository, with assumptions, prices and counts for easy arithmetic.
    fn inputs() -> Inputs {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut inputs = Inputs::read(&root).expect("the repository has all inputs");
        inputs.assumed = assumed();
        inputs.prices = crate::data::tests::round_prices();
        inputs.readings.single = Bundles {
            minutes: 0,
            bundles: 10,
            readings: 10,
            rows: 10,
            write_units: 10.0,
            row_bytes: 1600,
            ..quarters()
        };
        inputs
    }

    /// A station's day: 96 bundles with 100 readings of 10 sensors.
    fn quarters() -> Bundles {
        let records =
            Records { bytes: 96 * 4000, largest: 4000, kilobytes: 96 * 4, put_payload_units: 96 };
        Bundles {
            minutes: 15,
            bundles: 96,
            readings: 9600,
            rows: 960,
            write_units: 960.0,
            row_bytes: 96 * 2000,
            row_bytes_version_1: 96 * 2000,
            plain: records,
            gzip: records,
            alerting_read_units: 96,
        }
    }

    fn assert_near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9 * other.abs().max(1.0), "{one}, not {other}");
    }

    fn design(bundles: &Bundles, storage: Storage) -> Design<'_> {
        Design { bundles, storage }
    }

    /// One bundle per second.
    const LOAD: f64 = 100.0 * SECONDS;

    #[test]
    fn the_amounts_of_a_month_with_one_bundle_per_second() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let month = design(&bundles, Storage::Series).storing(&inputs, LOAD, Capacity::OnDemand)?;
        assert_near(month[&Item::StreamHour], 720.0);
        // 2,592,000 records of 4 KB.
        assert_near(month[&Item::StreamInGigabyte], 2_592_000.0 * 4096.0 / 1_073_741_824.0);
        assert_near(month[&Item::StreamOutGigabyte], month[&Item::StreamInGigabyte]);
        assert_near(month[&Item::WriteUnit], 25_920_000.0);
        // The rate is below the number of lanes, so each invocation has one record.
        assert_near(month[&Item::Request], 2_592_000.0);
        assert_eq!(month.get(&Item::ShardHour), None);
        Ok(())
    }

    #[test]
    fn shards_are_charged_by_the_hour_and_by_25_kilobytes() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let design = design(&bundles, Storage::Series);
        let month = design.storing(&inputs, LOAD, Capacity::Provisioned)?;
        assert_near(month[&Item::ShardHour], 720.0);
        assert_near(month[&Item::PutPayloadUnit], 2_592_000.0);
        assert_eq!(month.get(&Item::StreamHour), None);
        assert_eq!(month.get(&Item::StreamOutGigabyte), None);
        Ok(())
    }

    #[test]
    fn a_row_for_each_reading_is_a_write_for_each() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let writes = |storage| -> Result<f64> {
            let month = design(&bundles, storage).storing(&inputs, LOAD, Capacity::OnDemand)?;
            Ok(month[&Item::WriteUnit])
        };
        assert_near(writes(Storage::Item)?, 259_200_000.0);
        // Plus two for the idempotency record of each bundle.
        assert_near(writes(Storage::Powertools)?, 259_200_000.0 + 2.0 * 2_592_000.0);
        let single = inputs.readings.single.clone();
        let single_design = design(&single, Storage::Powertools);
        let single_month = single_design.storing(&inputs, LOAD, Capacity::OnDemand)?;
        assert_near(single_month[&Item::WriteUnit], 3.0 * 259_200_000.0);
        Ok(())
    }

    #[test]
    fn sites_send_within_the_burst() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let design = design(&bundles, Storage::Series);
        // One bundle per second comes from 900 sites. Each sends once in 900 s, but all within 300 s.
        assert_near(design.peak(&inputs, LOAD)?, 3.0);
        assert_near(design.shards(&inputs, 3.0)?, 1.0);
        // The limits of a shard are 1,048,576 bytes and 1,000 records per second.
        assert_near(design.shards(&inputs, 1_048_576.0 / 4000.0 * 2.5)?, 3.0);
        Ok(())
    }

    #[test]
    fn stored_rows_are_charged_for_storage_and_for_recovery() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let stored = design(&bundles, Storage::Series).retention(&inputs, LOAD)?;
        assert_near(stored[&Item::StoredGigabyte], 2_592_000.0 * 2000.0 / 1_073_741_824.0);
        assert_near(stored[&Item::RecoverableGigabyte], stored[&Item::StoredGigabyte]);
        let single = design(&bundles, Storage::Item).retention(&inputs, LOAD)?;
        assert_near(single[&Item::StoredGigabyte], 259_200_000.0 * 160.0 / 1_073_741_824.0);
        Ok(())
    }

    #[test]
    fn detect_breaches_reads_the_stream_again_and_a_row_for_each_bundle() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let alerting = design(&bundles, Storage::Series).alerting(&inputs, LOAD)?;
        assert_near(alerting[&Item::ReadUnit], 2_592_000.0);
        assert_near(alerting[&Item::StreamOutGigabyte], 2_592_000.0 * 4096.0 / 1_073_741_824.0);
        let http = design(&bundles, Storage::Series).over_http(&inputs, LOAD)?;
        assert_near(http[&Item::ApiRequest], 2_592_000.0);
        assert_near(http[&Item::Request], 2_592_000.0);
        Ok(())
    }

    #[test]
    fn each_request_is_a_check_and_the_first_of_a_day_is_a_write() -> Result<()> {
        let (inputs, bundles) = (inputs(), quarters());
        let checks = design(&bundles, Storage::Series).authorizing(&inputs, LOAD)?;
        assert_near(checks[&Item::Request], 2_592_000.0);
        assert_near(checks[&Item::ReadUnit], 2_592_000.0);
        // Each of the 900 loggers is seen for the first time on each of 30 days.
        assert_near(checks[&Item::WriteUnit], 900.0 * 30.0 * 2.0);
        assert_eq!(checks.get(&Item::ApiRequest), None, "API Gateway charges for the request only");
        let frequent = Bundles { minutes: 1, ..quarters() };
        assert!(design(&frequent, Storage::Series).authorizing(&inputs, LOAD).is_err());
        Ok(())
    }
}
