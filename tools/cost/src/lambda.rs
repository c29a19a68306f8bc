//! The number and the duration of the invocations of a stream's consumer.

use crate::{
    data::{Amounts, Assumptions, Item, Mapping},
    units::{DAYS, GIGABYTE, SECONDS, gigabyte_seconds, share_of_a_core, traces},
};

/// The work of a function per invocation and per record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// The memory in MB.
    pub memory: f64,
    /// The CPU time of an invocation without its records, in milliseconds of a whole core.
    pub invocation: f64,
    /// The CPU time of a record, in milliseconds of a whole core.
    pub record: f64,
    /// The time that a record waits for other services, in milliseconds.
    pub wait: f64,
    /// The number of records that are processed concurrently.
    pub side_by_side: f64,
    /// The size of an invocation's own log lines, in bytes.
    pub log_bytes: f64,
}

impl Work {
    /// Returns the duration of an invocation with this number of records, in milliseconds.
    ///
    /// The estimate is high, because it assumes that nothing is computed during waits.
    #[must_use]
    pub fn millis(&self, records: f64) -> f64 {
        let computed = (self.invocation + records * self.record) / share_of_a_core(self.memory);
        computed + (records / self.side_by_side).ceil() * self.wait
    }
}

/// Returns the maximum number of records in a batch. It is limited by the mapping, and by the event's size in base64.
#[must_use]
pub fn batch(mapping: Mapping, record_bytes: f64, assumed: &Assumptions) -> f64 {
    let in_event = (record_bytes / 3.0).ceil() * 4.0 + assumed.record_envelope;
    mapping.batch_size.min((assumed.largest_event / in_event).floor()).max(1.0)
}

/// Returns the invocations per second at this rate of records.
///
/// A lane is one of the batches of a shard that Lambda delivers concurrently. Lambda does not wait until a batch is
/// full. So at a low rate, each record is delivered alone. At higher rates, each lane gets one batch per poll.
#[must_use]
pub fn invocations(records: f64, lanes: f64, batch: f64, polls: f64) -> f64 {
    records.min((lanes * polls).max(records / batch))
}

/// Returns the monthly amounts of a function with this number of invocations per second and this duration in
/// milliseconds.
#[must_use]
pub fn month(invocations: f64, millis: f64, work: &Work, assumed: &Assumptions) -> Amounts {
    let seconds = DAYS * SECONDS;
    let logged =
        work.log_bytes + assumed.platform_log_bytes + assumed.log_lines * assumed.log_line_bytes;
    let traced = traces(invocations, assumed.traces_certain, assumed.traces_part);
    Amounts::from([
        (Item::Request, invocations * seconds),
        (Item::GigabyteSecond, invocations * seconds * gigabyte_seconds(millis, work.memory)),
        (Item::LogGigabyte, invocations * seconds * logged / GIGABYTE),
        (Item::Trace, traced * seconds),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPPING: Mapping = Mapping { batch_size: 500.0, parallelization_factor: 4.0 };

    fn assert_near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9, "{one}, not {other}");
    }

    #[test]
    fn few_records_are_delivered_one_by_one_and_many_in_batches() {
        // Four shards with four lanes each.
        assert_near(invocations(0.5, 16.0, 500.0, 1.0), 0.5);
        assert_near(invocations(100.0, 16.0, 500.0, 1.0), 16.0);
        assert_near(invocations(10_000.0, 16.0, 500.0, 1.0), 20.0);
    }

    #[test]
    fn large_records_fill_an_event_before_the_batch_is_full() {
        let assumed = crate::readings::tests::assumed();
        // 6,000,000 bytes: 300,000 bytes of data are 400,000 in base64, plus 500.
        assert_near(batch(MAPPING, 300_000.0, &assumed), 14.0);
        assert_near(batch(MAPPING, 300.0, &assumed), 500.0);
        assert_near(batch(MAPPING, 9e6, &assumed), 1.0);
    }

    #[test]
    fn the_duration_is_the_cpu_time_at_the_share_of_a_core_plus_the_waits() {
        let work = Work {
            memory: 884.5,
            invocation: 1.0,
            record: 0.5,
            wait: 5.0,
            side_by_side: 8.0,
            log_bytes: 0.0,
        };
        // (1 + 9 x 0.5) ms of CPU time at half a core take 11 ms. Nine records wait twice.
        assert_near(work.millis(9.0), 11.0 + 10.0);
    }

    #[test]
    fn a_month_of_an_invocation_a_second() {
        let assumed = crate::readings::tests::assumed();
        let work = Work {
            memory: 512.0,
            invocation: 0.0,
            record: 0.0,
            wait: 0.0,
            side_by_side: 1.0,
            log_bytes: 424.0,
        };
        let month = month(1.0, 10.0, &work, &assumed);
        assert_near(month[&Item::Request], 2_592_000.0);
        // 10 ms of half a gigabyte.
        assert_near(month[&Item::GigabyteSecond], 12_960.0);
        assert_near(month[&Item::Trace], 2_592_000.0);
        // 424 bytes of its own, 500 of Lambda's, and 25 for each of 4 lines: 1,024.
        assert_near(month[&Item::LogGigabyte], 2_592_000.0 * 1024.0 / 1_073_741_824.0);
    }
}
