//! Tests that every alarm of the deployed stack goes off when its metric leaves the normal range, notifies
//! on-call, and returns to OK when the metric is normal again.
//!
//! The emulator evaluates all values of a metric in the alarm's window together, whatever their dimensions. It
//! evaluates an alarm only when new values arrive, and it does not know missing data. The values in this test
//! are therefore measured at the beginning of the window, so that they leave it soon. Dimensions and the
//! handling of single datapoints are compared with a table in the template's tests.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use tests::{
    Stack,
    alarms::{Alarm, OnCall},
    wait::{Look, TIMEOUT, until, until_true},
};

/// How long a value stays in its alarm's window.
const LIFE: Duration = Duration::from_secs(2);

/// The longest wait for values of earlier work to leave the window of sums and counts. Real durations need no
/// wait: the test's values outnumber them.
const LONGEST: Duration = Duration::from_mins(5);

/// Values, and how often each was measured.
type Values = Vec<(f64, f64)>;

/// The expected behaviour of the alarms on a metric.
struct Rule {
    /// The namespace and name of the metric.
    metric: &'static str,
    /// The logical ids of the alarms. Empty for all alarms on the metric that no rule above names.
    alarms: &'static [&'static str],
    /// The limit values that are still normal.
    fine: Values,
    /// Values that raise the alarm.
    bad: Values,
    /// Whether the emulator adds values up. If so, one alarm is tested at a time, and each value is compensated
    /// by a negative one.
    adds_up: bool,
}

/// A rule for alarms that go off with the first occurrence.
fn any(metric: &'static str) -> Rule {
    sum(metric, &[0.0], &[0.0, 1.0])
}

fn sum(metric: &'static str, fine: &[f64], bad: &[f64]) -> Rule {
    Rule { adds_up: true, ..most(metric, fine, bad) }
}

fn most(metric: &'static str, fine: &[f64], bad: &[f64]) -> Rule {
    let each = |values: &[f64]| values.iter().map(|value| (*value, 1.0)).collect();
    Rule { metric, alarms: &[], fine: each(fine), bad: each(bad), adds_up: false }
}

/// A rule for a metric that also has an alarm on silence. The sample counts are so small that they do not count
/// as data.
fn most_of_little(metric: &'static str, fine: &[f64], bad: &[f64]) -> Rule {
    let little = |values: &[f64]| values.iter().map(|value| (*value, 0.001)).collect();
    Rule { fine: little(fine), bad: little(bad), ..most(metric, fine, bad) }
}

/// A rule for alarms that go off when there is no data.
fn silence(metric: &'static str, alarms: &'static [&'static str]) -> Rule {
    Rule { alarms, ..most(metric, &[0.0], &[]) }
}

/// A rule for durations: one call in twenty may take longer than the limit, in milliseconds. The sample counts
/// are so large that real durations do not matter.
fn slow(limit: f64, alarms: &'static [&'static str]) -> Rule {
    Rule {
        metric: "AWS/Lambda Duration",
        alarms,
        fine: vec![(limit, 960e3), (10.0 * limit, 40e3)],
        bad: vec![(1.0, 94e6), (limit + 1.0, 6e6)],
        adds_up: false,
    }
}

/// Returns the table of rules. The rules of one metric are tested in this order.
fn rules() -> Vec<Rule> {
    vec![
        any("AWS/States ExecutionsFailed"),
        any("AWS/States ExecutionsAborted"),
        any("AWS/States ExecutionsTimedOut"),
        any("Fieldstation OnboardingsFailed"),
        silence("Fieldstation StuckSagas", &["SagaChecksAlarm"]),
        most_of_little("Fieldstation StuckSagas", &[0.0, 0.0], &[0.0, 1.0]),
        silence("Fieldstation SubscriptionFindings", &["SubscriptionReconciliationAlarm"]),
        most_of_little("Fieldstation SubscriptionFindings", &[0.0, 0.0], &[0.0, 1.0]),
        any("Fieldstation ProviderCircuitOpen"),
        any("Fieldstation EventsPublished"),
        most("Fieldstation OldestUnpublishedEventAgeSeconds", &[300.0, 300.0], &[0.0, 301.0]),
        silence("Fieldstation OpenFailures", &["FailureReportsAlarm"]),
        most_of_little("Fieldstation OpenFailures", &[0.0, 0.0], &[0.0, 1.0]),
        any("Fieldstation FailuresRecorded"),
        silence("Fieldstation ConsumersNotRunning", &["ConsumerChecksAlarm"]),
        most_of_little("Fieldstation ConsumersNotRunning", &[0.0, 0.0], &[0.0, 1.0]),
        silence(
            "AWS/Lambda PolledEventCount",
            &[
                "CancelSubscriptionPollsAlarm",
                "DetectBreachesPollsAlarm",
                "InitializeSubscriptionPollsAlarm",
                "PublishEventsPollsAlarm",
                "StoreReadingsPollsAlarm",
            ],
        ),
        most("AWS/SQS ApproximateNumberOfMessagesVisible", &[0.0, 0.0], &[0.0, 1.0]),
        most("AWS/SQS ApproximateAgeOfOldestMessage", &[900.0, 900.0], &[0.0, 901.0]),
        most("AWS/Lambda IteratorAge", &[60_000.0, 60_000.0], &[0.0, 60_001.0]),
        any("AWS/Lambda OnFailureDestinationDeliveredEventCount"),
        any("AWS/Lambda DroppedEventCount"),
        any("AWS/Kinesis WriteProvisionedThroughputExceeded"),
        any("AWS/DynamoDB WriteThrottleEvents"),
        sum("AWS/Lambda Errors", &[1.0, 1.0], &[1.0, 2.0]),
        any("AWS/Lambda Throttles"),
        any("AWS/Lambda DestinationDeliveryFailures"),
        // Functions that process batches or call the payment provider.
        slow(
            10_000.0,
            &[
                "CancelSubscriptionDurationAlarm",
                "DetectBreachesDurationAlarm",
                "InitializeSubscriptionDurationAlarm",
                "PublishEventsDurationAlarm",
                "StoreReadingsDurationAlarm",
            ],
        ),
        // Functions that read many items.
        slow(
            5_000.0,
            &[
                "CheckSagasDurationAlarm",
                "RecordFailureDurationAlarm",
                "ReportFailuresDurationAlarm",
                "SweepEventsDurationAlarm",
            ],
        ),
        // One call for each mapping, with a pause between calls.
        slow(12_000.0, &["CheckConsumersDurationAlarm"]),
        // This function lists everything at the payment provider.
        slow(450_000.0, &["ReconcileSubscriptionsDurationAlarm"]),
        slow(1_000.0, &[]),
    ]
}

/// Feeds the metric until all of these alarms are in that state.
async fn becomes(
    stack: &Stack,
    alarms: &[&Alarm],
    state: &str,
    values: &[(f64, f64)],
    undo: bool,
) -> Result<()> {
    let window = alarms.first().context("an alarm")?.window();
    let ago = window.saturating_sub(LIFE);
    let ours: BTreeSet<_> = alarms.iter().map(|alarm| alarm.alarm_name.as_str()).collect();
    let what = format!("{state} of {ours:?} at {values:?}");
    until(&what, TIMEOUT.max(window.min(LONGEST)), async || {
        stack.measure(alarms, values, ago).await?;
        let now = stack.alarms().await?;
        if undo {
            let back: Vec<_> = values.iter().map(|(value, count)| (-value, *count)).collect();
            stack.measure(alarms, &back, ago).await?;
        }
        let now = now.into_iter().filter(|alarm| ours.contains(alarm.alarm_name.as_str()));
        let (good, other): (Vec<_>, Vec<_>) = now.partition(|alarm| alarm.state_value == state);
        Ok(if good.len() == ours.len() {
            Look::Found(())
        } else {
            // Values of earlier work leave the window.
            tokio::time::sleep(LIFE).await;
            let other = other.into_iter().map(|alarm| (alarm.alarm_name, alarm.state_value));
            Look::Saw(format!("{:?}", other.collect::<Vec<_>>()))
        })
    })
    .await
}

/// Checks that the alarms of a rule go off and return to OK.
async fn tried(stack: &Stack, rule: &Rule, alarms: &[&Alarm]) -> Result<()> {
    let at_once = if rule.adds_up { 1 } else { alarms.len() };
    for alarms in alarms.chunks(at_once) {
        becomes(stack, alarms, "OK", &rule.fine, rule.adds_up).await?;
        becomes(stack, alarms, "ALARM", &rule.bad, rule.adds_up).await?;
        if !rule.adds_up {
            tokio::time::sleep(LIFE).await;
        }
        becomes(stack, alarms, "OK", &rule.fine, rule.adds_up).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_alarm_goes_off_returns_to_ok_and_notifies_on_call() -> Result<()> {
    let stack = Stack::connect().await?;
    let alarms = stack.alarms().await?;
    let rules = rules();
    // Assign each alarm to its rule, and group the rules by metric.
    let mut of_rules = vec![Vec::new(); rules.len()];
    for alarm in &alarms {
        let id = alarm.logical_id.as_str();
        let metric = alarm.metric();
        let rule = rules.iter().position(|rule| {
            rule.metric == metric && (rule.alarms.is_empty() || rule.alarms.contains(&id))
        });
        let Some(rule) = rule else { bail!("{id} on {metric} is not in the table") };
        of_rules[rule].push(alarm);
    }
    let mut of_metrics = BTreeMap::<_, Vec<_>>::new();
    for (rule, alarms) in rules.iter().zip(&of_rules) {
        let count = alarms.len();
        assert!(count >= rule.alarms.len().max(1), "{} of {:?}", count, (rule.metric, rule.alarms));
        of_metrics.entry(rule.metric).or_default().push((rule, alarms));
    }

    let on_call = OnCall::begin(&stack).await?;
    try_join_all(of_metrics.into_values().map(async |mut rules| {
        // A value measured for a short window stays in a longer one, and the emulator's alarms evaluate all
        // values of a metric whatever their dimensions, so the longest windows come first.
        rules.sort_by_key(|(_, alarms)| {
            std::cmp::Reverse(alarms.first().map(|alarm| alarm.window()))
        });
        for (rule, alarms) in rules {
            tried(&stack, rule, alarms).await?;
        }
        anyhow::Ok(())
    }))
    .await?;

    let names: BTreeSet<_> = alarms.iter().map(|alarm| alarm.alarm_name.clone()).collect();
    let told = RefCell::new(BTreeSet::new());
    until_true("on-call to be told of each", TIMEOUT, async || {
        let notices = on_call.take(&stack).await?;
        let gone_off = notices.iter().filter(|notice| notice["NewStateValue"] == "ALARM");
        let gone_off = gone_off.filter_map(|notice| notice["AlarmName"].as_str());
        told.borrow_mut().extend(gone_off.map(str::to_owned));
        let missing: Vec<_> = names.difference(&told.borrow()).cloned().collect();
        Ok((missing.is_empty(), format!("nothing of {missing:?}")))
    })
    .await?;
    on_call.end(&stack).await
}
