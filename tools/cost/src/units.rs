//! AWS's units of charge.

/// A kilobyte of Kinesis and DynamoDB, in bytes.
pub const KILOBYTE: u64 = 1024;
/// A gigabyte that AWS charges for streams, tables, logs and memory, in bytes.
pub const GIGABYTE: f64 = 1_073_741_824.0;
/// The days of a month in this model.
pub const DAYS: f64 = 30.0;
/// The seconds of a day.
pub const SECONDS: f64 = 86_400.0;
/// The hours of a month.
pub const HOURS: f64 = DAYS * 24.0;

/// A PUT payload unit of a stream with provisioned shards, in bytes.
const PUT_PAYLOAD_UNIT: u64 = 25 * KILOBYTE;
/// A write unit of DynamoDB, in bytes.
const WRITE_UNIT: u64 = KILOBYTE;
/// A consistent read unit of DynamoDB, in bytes.
const READ_UNIT: u64 = 4 * KILOBYTE;
/// The memory in MB with which a function has one core. With less memory it has a proportional share.
const MEMORY_OF_A_CORE: f64 = 1769.0;

/// Returns the kilobytes that an on-demand stream charges for a record.
#[must_use]
pub fn stream_kilobytes(record_bytes: u64) -> u64 {
    record_bytes.div_ceil(KILOBYTE).max(1)
}

/// Returns the PUT payload units that a stream with provisioned shards charges for a record.
#[must_use]
pub fn put_payload_units(record_bytes: u64) -> u64 {
    record_bytes.div_ceil(PUT_PAYLOAD_UNIT).max(1)
}

/// Returns the write units of a single put of a row, outside of a transaction.
#[must_use]
pub fn write_units(row_bytes: u64) -> u64 {
    row_bytes.div_ceil(WRITE_UNIT).max(1)
}

/// Returns the read units of a consistent read of a row.
#[must_use]
pub fn read_units(row_bytes: u64) -> u64 {
    row_bytes.div_ceil(READ_UNIT).max(1)
}

/// Returns the share of a core that a function with this memory in MB has.
#[must_use]
pub fn share_of_a_core(memory: f64) -> f64 {
    (memory / MEMORY_OF_A_CORE).min(1.0)
}

/// Returns the gigabyte-seconds of an invocation: started milliseconds times memory.
#[must_use]
pub fn gigabyte_seconds(millis: f64, memory: f64) -> f64 {
    millis.ceil() / 1000.0 * memory / 1024.0
}

/// Returns the traces per second at this number of calls per second. The first `certain` calls are always traced, and
/// a fraction `part` of the others.
#[must_use]
pub fn traces(calls: f64, certain: f64, part: f64) -> f64 {
    calls.min(certain) + part * (calls - certain).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9 * other.abs().max(1.0), "{one}, not {other}");
    }

    #[test]
    fn a_record_is_charged_by_started_kilobytes_or_25_kilobytes() {
        assert_eq!([1, 1024, 1025, 4608].map(stream_kilobytes), [1, 1, 2, 5]);
        assert_eq!([1, 25_600, 25_601, 1_024_000].map(put_payload_units), [1, 1, 2, 40]);
    }

    #[test]
    fn a_row_is_charged_by_started_kilobytes_or_4_kilobytes() {
        assert_eq!([1, 1000, 1024, 1025, 3072].map(write_units), [1, 1, 1, 2, 3]);
        assert_eq!([1, 4096, 4097, 8192].map(read_units), [1, 1, 2, 2]);
    }

    #[test]
    fn memory_counts_in_binary_gigabytes_and_time_in_started_milliseconds() {
        // 512 MB are half a GB (not 0.512). 300 ms of it are 0.15 GB-s.
        assert_near(gigabyte_seconds(300.0, 512.0), 0.15);
        assert_near(gigabyte_seconds(0.2, 128.0), 0.000_125);
        assert_near(gigabyte_seconds(1.01, 1024.0), 0.002);
    }

    #[test]
    fn a_function_of_1769_mb_has_a_core() {
        assert_near(share_of_a_core(1769.0), 1.0);
        assert_near(share_of_a_core(884.5), 0.5);
        assert_near(share_of_a_core(10_240.0), 1.0);
    }

    #[test]
    fn a_month_has_30_days() {
        assert_near(HOURS, 720.0);
        assert_near(DAYS * SECONDS, 2_592_000.0);
    }

    #[test]
    fn of_21_calls_a_second_two_are_traced() {
        assert_near(traces(0.4, 1.0, 0.05), 0.4);
        assert_near(traces(21.0, 1.0, 0.05), 2.0);
    }
}
