//! The candidates behind one trait. Each is a feature; measure.sh builds them one at a time.

use contracts::readings::Sample;

/// A way to pack a bundle's samples of one sensor.
pub trait Packing {
    /// The bytes of the samples, which ascend in time; nothing if it can't hold them.
    fn pack(&self, samples: &[Sample]) -> Option<Vec<u8>>;

    /// The samples of the bytes; nothing if `pack` can't have written them.
    fn unpack(&self, bytes: &[u8]) -> Option<Vec<Sample>>;
}

/// The one that is compiled in; without any, what the others' sizes are compared with.
pub const CANDIDATE: &dyn Packing = {
    #[cfg(feature = "json")]
    {
        &json::Json
    }
    #[cfg(feature = "plain")]
    {
        &plain::Plain
    }
    #[cfg(feature = "pco")]
    {
        &numeric::Pco
    }
    #[cfg(feature = "packing")]
    {
        &ours::Ours
    }
    #[cfg(not(any(feature = "json", feature = "plain", feature = "pco", feature = "packing")))]
    {
        &none::Nothing
    }
};

/// What telemetry does.
#[cfg(feature = "packing")]
mod ours {
    use super::{Packing, Sample};
    use crate::packing;

    pub struct Ours;

    impl Packing for Ours {
        fn pack(&self, samples: &[Sample]) -> Option<Vec<u8>> {
            Some(packing::pack(samples))
        }

        fn unpack(&self, bytes: &[u8]) -> Option<Vec<Sample>> {
            packing::unpack(bytes).ok()
        }
    }
}

/// JSON text: `[[epoch milliseconds, value], ...]`.
#[cfg(feature = "json")]
mod json {
    use contracts::Timestamp;

    use super::{Packing, Sample};

    /// With `float_roundtrip`: without it, reading may be off by the last bit.
    pub struct Json;

    impl Packing for Json {
        fn pack(&self, samples: &[Sample]) -> Option<Vec<u8>> {
            let pairs: Vec<_> =
                samples.iter().map(|Sample(at, value)| (at.millis(), value)).collect();
            serde_json::to_vec(&pairs).ok()
        }

        fn unpack(&self, bytes: &[u8]) -> Option<Vec<Sample>> {
            let pairs: Vec<(i64, f64)> = serde_json::from_slice(bytes).ok()?;
            let sample = |(at, value)| Sample(Timestamp::from_millis(at), value);
            Some(pairs.into_iter().map(sample).collect())
        }
    }
}

/// Time and value, little endian: sixteen bytes a sample.
#[cfg(feature = "plain")]
mod plain {
    use contracts::Timestamp;

    use super::{Packing, Sample};

    pub struct Plain;

    impl Packing for Plain {
        fn pack(&self, samples: &[Sample]) -> Option<Vec<u8>> {
            let mut bytes = Vec::with_capacity(samples.len() * 16);
            for Sample(at, value) in samples {
                bytes.extend(at.millis().to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
            Some(bytes)
        }

        fn unpack(&self, bytes: &[u8]) -> Option<Vec<Sample>> {
            let (halves, []) = bytes.as_chunks::<8>() else { return None };
            let (pairs, []) = halves.as_chunks::<2>() else { return None };
            let sample = |[at, value]: &[[u8; 8]; 2]| {
                Sample(Timestamp::from_millis(i64::from_le_bytes(*at)), f64::from_le_bytes(*value))
            };
            Some(pairs.iter().map(sample).collect())
        }
    }
}

/// Times and values through `pco`, in its wrapped format: the standalone one tells type, count and
/// end of each column as well.
#[cfg(feature = "pco")]
mod numeric {
    use contracts::Timestamp;
    use pco::{
        ChunkConfig, DeltaSpec, ModeSpec,
        data_types::Number,
        wrapped::{FileCompressor, FileDecompressor},
    };

    use super::{Packing, Sample};

    /// Eight, the default, is a little smaller for a day and takes more instructions.
    const LEVEL: usize = 4;

    pub struct Pco;

    impl Packing for Pco {
        fn pack(&self, samples: &[Sample]) -> Option<Vec<u8>> {
            let times: Vec<_> = samples.iter().map(|sample| sample.0.millis()).collect();
            let values: Vec<_> = samples.iter().map(|sample| sample.1).collect();
            // Left to itself, it takes even short series of times for multiples of something.
            let of_times = ChunkConfig::default()
                .with_compression_level(0)
                .with_mode_spec(ModeSpec::Classic)
                .with_delta_spec(DeltaSpec::TryConsecutive(1));
            // Sensors send a digit behind the point. It falls back if these do not.
            let of_values = ChunkConfig::default()
                .with_compression_level(LEVEL)
                .with_mode_spec(ModeSpec::TryFloatMult(0.1));
            let mut bytes = u32::try_from(samples.len()).ok()?.to_le_bytes().to_vec();
            let file = FileCompressor::default();
            file.write_header(&mut bytes).ok()?;
            put(&mut bytes, &file, &times, &of_times)?;
            put(&mut bytes, &file, &values, &of_values)?;
            Some(bytes)
        }

        fn unpack(&self, bytes: &[u8]) -> Option<Vec<Sample>> {
            let (count, bytes) = bytes.split_first_chunk::<4>()?;
            let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
            let (file, mut bytes) = FileDecompressor::new(bytes).ok()?;
            let times = take::<i64>(&mut bytes, &file, count)?;
            let values = take::<f64>(&mut bytes, &file, count)?;
            let sample = |(at, value)| Sample(Timestamp::from_millis(at), value);
            Some(times.into_iter().zip(values).map(sample).collect())
        }
    }

    fn put<T: Number>(
        bytes: &mut Vec<u8>,
        file: &FileCompressor,
        numbers: &[T],
        config: &ChunkConfig,
    ) -> Option<()> {
        if numbers.is_empty() {
            return Some(());
        }
        let mut chunk = file.chunk_compressor(numbers, config).ok()?;
        chunk.write_meta(&mut *bytes).ok()?;
        chunk.write_page(0, bytes).ok().map(drop)
    }

    fn take<T: Number + Default>(
        bytes: &mut &[u8],
        file: &FileDecompressor,
        count: usize,
    ) -> Option<Vec<T>> {
        let mut numbers = vec![T::default(); count];
        if count > 0 {
            let (mut chunk, rest) = file.chunk_decompressor::<T, _>(*bytes).ok()?;
            let mut page = chunk.page_decompressor(rest, count).ok()?;
            page.read(&mut numbers).ok().filter(|progress| progress.finished)?;
            *bytes = page.into_src();
        }
        Some(numbers)
    }
}

#[cfg(not(any(feature = "json", feature = "plain", feature = "pco", feature = "packing")))]
mod none {
    use super::{Packing, Sample};

    /// Keeps nothing.
    pub struct Nothing;

    impl Packing for Nothing {
        fn pack(&self, _samples: &[Sample]) -> Option<Vec<u8>> {
            Some(Vec::new())
        }

        fn unpack(&self, _bytes: &[u8]) -> Option<Vec<Sample>> {
            Some(Vec::new())
        }
    }
}
