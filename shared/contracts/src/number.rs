//! The range of numbers that DynamoDB can store. It applies to all numbers from outside that are stored as DynamoDB
//! numbers.

use schemars::{Schema, SchemaGenerator, json_schema};

/// The smallest positive number that `DynamoDB` accepts. The same limit applies to negative numbers. Zero is accepted.
pub const MIN_MAGNITUDE: f64 = 1e-130;
/// The largest `f64` that `DynamoDB` accepts: the one before 1e126.
pub const MAX_MAGNITUDE: f64 = 9.999_999_999_999_998e125;

/// Returns whether DynamoDB can store the number.
#[must_use]
pub fn is_storable(number: f64) -> bool {
    number == 0.0 || (MIN_MAGNITUDE..=MAX_MAGNITUDE).contains(&number.abs())
}

/// Returns the JSON Schema of a number from `min` to `max` that DynamoDB can store.
pub(crate) fn schema(min: f64, max: f64) -> Schema {
    json_schema!({
        "type": "number",
        "minimum": min,
        "maximum": max,
        "anyOf": [
            { "const": 0 },
            { "minimum": MIN_MAGNITUDE },
            { "maximum": -MIN_MAGNITUDE },
        ],
    })
}

/// Returns the JSON Schema of any finite `f64`. Readings are stored as eight bytes, not as DynamoDB numbers.
pub(crate) fn finite(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "number", "minimum": f64::MIN, "maximum": f64::MAX })
}

/// Returns the JSON Schema of any number that DynamoDB can store.
pub(crate) fn storable(_: &mut SchemaGenerator) -> Schema {
    schema(-MAX_MAGNITUDE, MAX_MAGNITUDE)
}

/// Returns the JSON Schema of a number that DynamoDB can store, or `null`.
pub(crate) fn any_or_null(_: &mut SchemaGenerator) -> Schema {
    or_null(schema(-MAX_MAGNITUDE, MAX_MAGNITUDE))
}

/// Returns the JSON Schema of a number that may also be `null`.
pub(crate) fn or_null(mut number: Schema) -> Schema {
    number.insert("type".to_owned(), serde_json::json!(["number", "null"]));
    number
}

/// Formats the number for messages. Very large and very small numbers get an exponent.
#[must_use]
pub(crate) fn format_number(number: f64) -> String {
    if number == 0.0 || (1e-6..1e16).contains(&number.abs()) {
        number.to_string()
    } else {
        format!("{number:e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_that_of_dynamodb() {
        assert_eq!(MAX_MAGNITUDE.to_bits(), 1e126_f64.next_down().to_bits());
        for number in [0.0, -0.0, 1.0, -1e-130, 1e-130, MAX_MAGNITUDE, -MAX_MAGNITUDE] {
            assert!(is_storable(number), "{number:e}");
        }
        let below = MIN_MAGNITUDE.next_down();
        for number in [1e126, -1e126, -1e200, 1e-200, 9e-131, below, -below, f64::NAN, f64::MAX] {
            assert!(!is_storable(number), "{number:e}");
        }
    }

    #[test]
    fn a_number_is_shown_short() {
        for (number, text) in [(91.0, "91"), (-0.5, "-0.5"), (1e126, "1e126"), (1e-200, "1e-200")] {
            assert_eq!(format_number(number), text);
        }
    }
}
