//! The use of the quotas, and which one is reached first.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::{
    data::{Item, Limit},
    inputs::Inputs,
    onboarding,
    readings::Design,
};

/// The use of each quota.
pub type Uses = BTreeMap<Limit, f64>;

impl Design<'_> {
    /// Returns the use at the peak of this number of readings per day.
    pub fn uses(&self, inputs: &Inputs, readings_a_day: f64) -> Result<Uses> {
        let record = self.record(inputs)?;
        let peak = self.peak(inputs, readings_a_day)?;
        let shards = self.shards(inputs, peak)?.max(inputs.assumed.least_shards);
        let flow = self.flow(inputs, peak, shards)?;
        let (alerting, _) = self.alerting_flow(inputs, peak, shards)?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let largest = self.bundles.plain.largest as f64;
        let bytes = peak * record.bytes;
        let writes = peak * record.write_units;
        Ok(Uses::from([
            (Limit::StreamBytes, bytes),
            (Limit::NewStreamBytes, bytes),
            (Limit::RecordBytes, largest),
            (Limit::Concurrency, flow.concurrency() + alerting.concurrency()),
            (Limit::TableWrites, writes),
            (Limit::NewTableWrites, writes),
            (Limit::PostReadings, peak),
            (Limit::ApiRequests, peak),
        ]))
    }
}

/// Returns the use at one onboarding per second.
pub fn onboarding_uses(inputs: &Inputs) -> Result<Uses> {
    let amounts = onboarding::done(inputs, onboarding::Implementation::Own)?;
    let effects = &inputs.onboardings.done;
    let consumers = ["start-onboarding", "project-site", "project-sensors"];
    let target_invocations =
        effects.iter().filter(|effect| consumers.contains(&effect.function.as_str()));
    let seconds = effects.iter().map(|effect| {
        let millis = onboarding::millis(inputs, &effect.function)?;
        Ok(f64::from(effect.invocations) * millis / 1000.0)
    });
    let seconds = seconds.sum::<Result<f64>>()?;
    Ok(Uses::from([
        (Limit::PostSites, 1.0),
        (Limit::StartExecutions, 1.0),
        // initialize-subscription calls it to check that the execution sent the command.
        (Limit::DescribeExecutions, 1.0),
        (Limit::Transitions, amounts[&Item::Transition]),
        (Limit::PutEvents, amounts[&Item::Event]),
        (
            Limit::TargetInvocations,
            target_invocations.map(|effect| f64::from(effect.invocations)).sum(),
        ),
        (Limit::Concurrency, seconds),
    ]))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::readings::Storage;

    #[test]
    fn the_peak_of_a_billion_readings_a_day_follows_from_the_number_of_sites() -> Result<()> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut inputs = Inputs::read(&root)?;
        inputs.assumed.burst_seconds = 300.0;
        // 13 sensors with 1,440 samples a day: 53,418.8 sites. Each sends a bundle within five minutes.
        let sites: f64 = 1e9 / (13.0 * 1440.0);
        for bundles in &inputs.readings.bundles {
            let design = Design { bundles, storage: Storage::Series };
            let uses = design.uses(&inputs, 1e9)?;
            let peak = sites / 300.0;
            assert!((uses[&Limit::PostReadings] - peak).abs() < 1e-6, "{uses:?}");
            let rows = f64::from(bundles.rows) / f64::from(bundles.bundles);
            assert!(uses[&Limit::TableWrites] >= peak * rows - 1e-6, "{uses:?}");
        }
        Ok(())
    }
}
