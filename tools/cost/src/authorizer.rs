//! The cost of the authorizer, which checks the caller of each request to the API.

use anyhow::{Result, ensure};

use crate::{
    data::{Amounts, Item},
    inputs::Inputs,
    lambda::{Work, month},
    readings::{Design, add},
    units::{DAYS, SECONDS},
};

/// The read units of a check: one consistent read of the key's row, which has less than 4 KB. `make bench` counts it.
pub const READ_UNITS: f64 = 1.0;
/// The write units of a key's first use on a day: the row, and its copy in the index `byOperator`. A test of the
/// function counts them.
pub const FIRST_USE_WRITE_UNITS: f64 = 2.0;

impl Design<'_> {
    /// Returns the monthly amounts of checking the keys of loggers that send each bundle with its own HTTP request.
    ///
    /// API Gateway caches a decision for a minute. Loggers send less often, so each request is a check.
    pub fn authorizing(&self, inputs: &Inputs, readings_a_day: f64) -> Result<Amounts> {
        let minutes = f64::from(self.bundles.minutes);
        ensure!(minutes > 1.0, "the decision for the previous request is still cached");
        let Inputs { assumed, figures, .. } = inputs;
        let checks = readings_a_day / self.record(inputs)?.readings / SECONDS;
        let first_uses = minutes / (24.0 * 60.0);
        let ours = figures.function("authorise-caller")?;
        let work = Work {
            memory: inputs.memory("authorise-caller"),
            invocation: ours.millis(),
            record: 0.0,
            wait: assumed.aws_millis * (1.0 + first_uses),
            side_by_side: 1.0,
            log_bytes: ours.log_bytes(),
        };
        let function = month(checks, work.millis(1.0), &work, assumed);
        let checks = checks * DAYS * SECONDS;
        let rows = Amounts::from([
            (Item::ReadUnit, checks * READ_UNITS),
            (Item::WriteUnit, checks * first_uses * FIRST_USE_WRITE_UNITS),
        ]);
        Ok(add(function, &rows))
    }
}
