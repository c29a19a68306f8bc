//! How AWS counts what it charges for.

/// A kilobyte, as Kinesis and DynamoDB count it, in bytes.
pub const KILOBYTE: u64 = 1024;
/// A gigabyte, as AWS charges for it, in bytes: of streams, tables and logs, and of memory.
pub const GIGABYTE: f64 = 1_073_741_824.0;
/// A month here: 30 days.
pub const DAYS: f64 = 30.0;
/// Of a day.
pub const SECONDS: f64 = 86_400.0;
/// Of a month.
pub const HOURS: f64 = DAYS * 24.0;

/// A PUT payload unit of a stream with provisioned shards, in bytes.
const PUT_PAYLOAD_UNIT: u64 = 25 * KILOBYTE;
/// A write unit of DynamoDB, in bytes.
const WRITE_UNIT: u64 = KILOBYTE;
/// A consistent read unit of DynamoDB, in bytes.
const READ_UNIT: u64 = 4 * KILOBYTE;
/// With so much memory a function has one core, in MB; with less its share of it.
const MEMORY_OF_A_CORE: f64 = 1769.0;

/// What a stream on demand charges a record for, in kilobytes.
#[must_use]
pub fn stream_kilobytes(record_bytes: u64) -> u64 {
    record_bytes.div_ceil(KILOBYTE).max(1)
}

/// What a stream with provisioned shards charges a record for.
#[must_use]
pub fn put_payload_units(record_bytes: u64) -> u64 {
    record_bytes.div_ceil(PUT_PAYLOAD_UNIT).max(1)
}

/// Of a single put of a row, outside of a transaction.
#[must_use]
pub fn write_units(row_bytes: u64) -> u64 {
    row_bytes.div_ceil(WRITE_UNIT).max(1)
}

/// Of a consistent read of a row.
#[must_use]
pub fn read_units(row_bytes: u64) -> u64 {
    row_bytes.div_ceil(READ_UNIT).max(1)
}

/// The part of a core that a function with so much memory, in MB, has.
#[must_use]
pub fn share_of_a_core(memory: f64) -> f64 {
    (memory / MEMORY_OF_A_CORE).min(1.0)
}

/// What an invocation of so many milliseconds is charged for: begun milliseconds, times gigabytes.
#[must_use]
pub fn gigabyte_seconds(millis: f64, memory: f64) -> f64 {
    millis.ceil() / 1000.0 * memory / 1024.0
}

/// Traces a second of what is called so often a second: so many of them for certain, and a part of
/// the others.
#[must_use]
pub fn traces(calls: f64, certain: f64, part: f64) -> f64 {
    calls.min(certain) + part * (calls - certain).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64) {
        assert!((one - other).abs() < 1e-9 * other.abs().max(1.0), "{one}, not {other}");
    }

    #[test]
    fn a_record_is_charged_by_begun_kilobytes_or_25_kilobytes() {
        assert_eq!([1, 1024, 1025, 4608].map(stream_kilobytes), [1, 1, 2, 5]);
        assert_eq!([1, 25_600, 25_601, 1_024_000].map(put_payload_units), [1, 1, 2, 40]);
    }

    #[test]
    fn a_row_is_written_by_begun_kilobytes_and_read_by_begun_four() {
        assert_eq!([1, 1000, 1024, 1025, 3072].map(write_units), [1, 1, 1, 2, 3]);
        assert_eq!([1, 4096, 4097, 8192].map(read_units), [1, 1, 2, 2]);
    }

    #[test]
    fn memory_is_counted_in_binary_gigabytes_and_time_in_begun_milliseconds() {
        // 512 MB are half of a GB, not 0.512 of it; 300 ms of it are 0.15 GB-s.
        near(gigabyte_seconds(300.0, 512.0), 0.15);
        near(gigabyte_seconds(0.2, 128.0), 0.000_125);
        near(gigabyte_seconds(1.01, 1024.0), 0.002);
    }

    #[test]
    fn a_function_of_1769_mb_has_a_core() {
        near(share_of_a_core(1769.0), 1.0);
        near(share_of_a_core(884.5), 0.5);
        near(share_of_a_core(10_240.0), 1.0);
    }

    #[test]
    fn a_month_has_30_days() {
        near(HOURS, 720.0);
        near(DAYS * SECONDS, 2_592_000.0);
    }

    #[test]
    fn of_21_calls_a_second_two_are_traced() {
        near(traces(0.4, 1.0, 0.05), 0.4);
        near(traces(21.0, 1.0, 0.05), 2.0);
    }
}
