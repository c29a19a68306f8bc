//! Tests that every alarm of the deployed stack goes to ALARM when its metric leaves the normal range, notifies
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
    alarms::{Alarm, OnCallQueue},
    wait::{Poll, TIMEOUT, until, until_true},
};

/// The time for which a value stays in its alarm's window.
const VALUE_LIFETIME: Duration = Duration::from_secs(2);

/// The maximum wait until values of earlier work leave the window of sums and counts. Real durations need no wait,
/// because the test's values outnumber them.
const MAX_WINDOW_WAIT: Duration = Duration::from_mins(5);

/// Values with their counts.
type Values = Vec<(f64, f64)>;

/// The expected behaviour of the alarms on a metric.
struct Rule {
    /// The namespace and name of the metric.
    metric: &'static str,
    /// The logical ids of the alarms. Empty for all alarms on the metric that no rule above names.
    alarms: &'static [&'static str],
    /// Values at the threshold, which are still normal.
    normal: Values,
    /// Values that raise the alarm.
    alarming: Values,
    /// Whether the alarm evaluates a sum. If so, one alarm is tested at a time, and each value is cancelled out by a
    /// negative one.
    is_sum: bool,
}

/// Returns a rule for alarms that go to ALARM at the first occurrence.
fn any_occurrence(metric: &'static str) -> Rule {
    sum_threshold(metric, &[0.0], &[0.0, 1.0])
}

fn sum_threshold(metric: &'static str, normal: &[f64], alarming: &[f64]) -> Rule {
    Rule { is_sum: true, ..threshold(metric, normal, alarming) }
}

fn threshold(metric: &'static str, normal: &[f64], alarming: &[f64]) -> Rule {
    let each = |values: &[f64]| values.iter().map(|value| (*value, 1.0)).collect();
    Rule { metric, alarms: &[], normal: each(normal), alarming: each(alarming), is_sum: false }
}

/// Returns a rule for a metric that also has an alarm on missing data. The sample counts are so small that the values
/// do not count as data.
fn threshold_with_tiny_counts(metric: &'static str, normal: &[f64], alarming: &[f64]) -> Rule {
    let tiny = |values: &[f64]| values.iter().map(|value| (*value, 0.001)).collect();
    Rule { normal: tiny(normal), alarming: tiny(alarming), ..threshold(metric, normal, alarming) }
}

/// Returns a rule for alarms on missing data.
fn missing_data(metric: &'static str, alarms: &'static [&'static str]) -> Rule {
    Rule { alarms, ..threshold(metric, &[0.0], &[]) }
}

/// Returns a rule for alarms on durations: one call in twenty may take longer than the limit, in milliseconds. The
/// sample counts are so large that real durations do not matter.
fn slow_calls(limit: f64, alarms: &'static [&'static str]) -> Rule {
    Rule {
        metric: "AWS/Lambda Duration",
        alarms,
        normal: vec![(limit, 960e3), (10.0 * limit, 40e3)],
        alarming: vec![(1.0, 94e6), (limit + 1.0, 6e6)],
        is_sum: false,
    }
}

/// Returns the table of rules. An alarm belongs to the first rule that fits.
fn rules() -> Vec<Rule> {
    vec![
        any_occurrence("AWS/States ExecutionsFailed"),
        any_occurrence("AWS/States ExecutionsAborted"),
        any_occurrence("AWS/States ExecutionsTimedOut"),
        any_occurrence("Fieldstation OnboardingsFailed"),
        missing_data("Fieldstation StuckSagas", &["SagaChecksAlarm"]),
        threshold_with_tiny_counts("Fieldstation StuckSagas", &[0.0, 0.0], &[0.0, 1.0]),
        missing_data("Fieldstation SubscriptionFindings", &["SubscriptionReconciliationAlarm"]),
        threshold_with_tiny_counts("Fieldstation SubscriptionFindings", &[0.0, 0.0], &[0.0, 1.0]),
        any_occurrence("Fieldstation ProviderCircuitOpen"),
        any_occurrence("Fieldstation EventsPublished"),
        threshold("Fieldstation OldestUnpublishedEventAgeSeconds", &[300.0, 300.0], &[0.0, 301.0]),
        missing_data("Fieldstation OpenFailures", &["FailureReportsAlarm"]),
        threshold_with_tiny_counts("Fieldstation OpenFailures", &[0.0, 0.0], &[0.0, 1.0]),
        any_occurrence("Fieldstation FailuresRecorded"),
        missing_data("Fieldstation ConsumersNotRunning", &["ConsumerChecksAlarm"]),
        threshold_with_tiny_counts("Fieldstation ConsumersNotRunning", &[0.0, 0.0], &[0.0, 1.0]),
        missing_data(
            "AWS/Lambda PolledEventCount",
            &[
                "CancelSubscriptionPollsAlarm",
                "DetectBreachesPollsAlarm",
                "InitializeSubscriptionPollsAlarm",
                "PublishEventsPollsAlarm",
                "StoreHeldReadingsPollsAlarm",
                "StoreReadingsPollsAlarm",
                "WatchNetworkPollsAlarm",
                "WatchStockPollsAlarm",
            ],
        ),
        threshold("AWS/SQS ApproximateNumberOfMessagesVisible", &[0.0, 0.0], &[0.0, 1.0]),
        threshold("AWS/SQS ApproximateAgeOfOldestMessage", &[900.0, 900.0], &[0.0, 901.0]),
        threshold("AWS/Lambda IteratorAge", &[60_000.0, 60_000.0], &[0.0, 60_001.0]),
        any_occurrence("AWS/Lambda OnFailureDestinationDeliveredEventCount"),
        any_occurrence("AWS/Lambda DroppedEventCount"),
        any_occurrence("AWS/Kinesis WriteProvisionedThroughputExceeded"),
        any_occurrence("AWS/DynamoDB WriteThrottleEvents"),
        sum_threshold("AWS/Lambda Errors", &[1.0, 1.0], &[1.0, 2.0]),
        any_occurrence("AWS/Lambda Throttles"),
        any_occurrence("AWS/Lambda DestinationDeliveryFailures"),
        // Functions that process batches or call the payment provider.
        slow_calls(
            10_000.0,
            &[
                "CancelSubscriptionDurationAlarm",
                "DetectBreachesDurationAlarm",
                "InitializeSubscriptionDurationAlarm",
                "PublishEventsDurationAlarm",
                "StoreHeldReadingsDurationAlarm",
                "StoreReadingsDurationAlarm",
                "WatchNetworkDurationAlarm",
                "WatchStockDurationAlarm",
            ],
        ),
        // Functions that read many items.
        slow_calls(
            5_000.0,
            &[
                "CheckSagasDurationAlarm",
                "GetSummaryDurationAlarm",
                "RecordFailureDurationAlarm",
                "ReportFailuresDurationAlarm",
                "SweepEventsDurationAlarm",
            ],
        ),
        // An append may try again for two seconds. A list reads up to 31 days.
        slow_calls(2_000.0, &["AppendEventDurationAlarm", "ListEventsDurationAlarm"]),
        // One call for each mapping, with a pause between calls.
        slow_calls(12_000.0, &["CheckConsumersDurationAlarm"]),
        // This function lists everything at the payment provider.
        slow_calls(450_000.0, &["ReconcileSubscriptionsDurationAlarm"]),
        slow_calls(1_000.0, &[]),
    ]
}

/// Puts the values repeatedly until all of these alarms are in this state. With `cancel_out`, puts the negative values
/// after each attempt.
async fn wait_for_state(
    stack: &Stack,
    alarms: &[&Alarm],
    state: &str,
    values: &[(f64, f64)],
    cancel_out: bool,
) -> Result<()> {
    let window = alarms.first().context("no alarms")?.window();
    let ago = window.saturating_sub(VALUE_LIFETIME);
    let names: BTreeSet<_> = alarms.iter().map(|alarm| alarm.alarm_name.as_str()).collect();
    let what = format!("the state {state} of {names:?} at {values:?}");
    until(&what, TIMEOUT.max(window.min(MAX_WINDOW_WAIT)), async || {
        stack.put_metric_values(alarms, values, ago).await?;
        let now = stack.alarms().await?;
        if cancel_out {
            let negative: Vec<_> = values.iter().map(|(value, count)| (-value, *count)).collect();
            stack.put_metric_values(alarms, &negative, ago).await?;
        }
        let now = now.into_iter().filter(|alarm| names.contains(alarm.alarm_name.as_str()));
        let (reached, other): (Vec<_>, Vec<_>) = now.partition(|alarm| alarm.state_value == state);
        Ok(if reached.len() == names.len() {
            Poll::Ready(())
        } else {
            // Meanwhile, values of earlier work leave the window.
            tokio::time::sleep(VALUE_LIFETIME).await;
            let other = other.into_iter().map(|alarm| (alarm.alarm_name, alarm.state_value));
            Poll::Pending(format!("{:?}", other.collect::<Vec<_>>()))
        })
    })
    .await
}

/// Checks that the alarms of a rule go to ALARM and return to OK.
async fn test_rule(stack: &Stack, rule: &Rule, alarms: &[&Alarm]) -> Result<()> {
    let group_size = if rule.is_sum { 1 } else { alarms.len() };
    for alarms in alarms.chunks(group_size) {
        wait_for_state(stack, alarms, "OK", &rule.normal, rule.is_sum).await?;
        wait_for_state(stack, alarms, "ALARM", &rule.alarming, rule.is_sum).await?;
        if !rule.is_sum {
            tokio::time::sleep(VALUE_LIFETIME).await;
        }
        wait_for_state(stack, alarms, "OK", &rule.normal, rule.is_sum).await?;
    }
    Ok(())
}

#[tokio::test]
async fn every_alarm_fires_notifies_on_call_and_returns_to_ok() -> Result<()> {
    let stack = Stack::connect().await?;
    let alarms = stack.alarms().await?;
    let rules = rules();
    // Assign each alarm to its rule, and group the rules by metric.
    let mut alarms_of_rules = vec![Vec::new(); rules.len()];
    for alarm in &alarms {
        let id = alarm.logical_id.as_str();
        let metric = alarm.metric();
        let rule = rules.iter().position(|rule| {
            rule.metric == metric && (rule.alarms.is_empty() || rule.alarms.contains(&id))
        });
        let Some(rule) = rule else { bail!("no rule in the table for {id} on {metric}") };
        alarms_of_rules[rule].push(alarm);
    }
    let mut rules_of_metrics = BTreeMap::<_, Vec<_>>::new();
    for (rule, alarms) in rules.iter().zip(&alarms_of_rules) {
        let count = alarms.len();
        assert!(
            count >= rule.alarms.len().max(1),
            "{count} alarms for the rule {:?}",
            (rule.metric, rule.alarms)
        );
        rules_of_metrics.entry(rule.metric).or_default().push((rule, alarms));
    }

    let on_call = OnCallQueue::subscribe(&stack).await?;
    try_join_all(rules_of_metrics.into_values().map(async |mut rules| {
        // The longest windows come first. A value at the beginning of a short window is still in a longer one, and the
        // emulator's alarms evaluate all values of a metric, whatever their dimensions.
        rules.sort_by_key(|(_, alarms)| {
            std::cmp::Reverse(alarms.first().map(|alarm| alarm.window()))
        });
        for (rule, alarms) in rules {
            test_rule(&stack, rule, alarms).await?;
        }
        anyhow::Ok(())
    }))
    .await?;

    let names: BTreeSet<_> = alarms.iter().map(|alarm| alarm.alarm_name.clone()).collect();
    let alarmed = RefCell::new(BTreeSet::new());
    until_true("a notification of each alarm", TIMEOUT, async || {
        let notifications = on_call.take(&stack).await?;
        let in_alarm = notifications.iter().filter(|it| it["NewStateValue"] == "ALARM");
        let in_alarm = in_alarm.filter_map(|it| it["AlarmName"].as_str());
        alarmed.borrow_mut().extend(in_alarm.map(str::to_owned));
        let missing: Vec<_> = names.difference(&alarmed.borrow()).cloned().collect();
        Ok((missing.is_empty(), format!("no notification of {missing:?}")))
    })
    .await?;
    on_call.unsubscribe(&stack).await
}
