//! Every alarm of the deployed stack goes off when its metric is beyond what is normal, on-call is
//! told of it, and it goes out when the metric is normal again.
//!
//! The emulator takes all values of a metric in the alarm's window for one, whatever their
//! dimensions, and looks at them when new ones come; it knows no missing data. So the values here
//! were measured when the window just began, and leave it soon. What depends on the dimensions and on
//! single datapoints is compared with a table in the template's tests.

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
    wait::{Look, PATIENCE, until, until_true},
};

/// So long a value stays in its alarm's window.
const LIFE: Duration = Duration::from_secs(2);

/// For what earlier work left in the window of sums and counts; what functions really took is
/// outnumbered.
const LONGEST: Duration = Duration::from_mins(5);

/// Values, and how often each was measured.
type Values = Vec<(f64, f64)>;

/// How an alarm is to behave.
struct Rule {
    /// Of which metric.
    metric: &'static str,
    /// Which alarms on it, by their logical ids; nothing for all that no rule above is for.
    alarms: &'static [&'static str],
    /// Values that are just normal still.
    fine: Values,
    /// Values that are not.
    bad: Values,
    /// Values add up: so one alarm after the other, and each value is taken back.
    adds_up: bool,
}

/// It goes off with the first.
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

/// Of a metric whose silence alarms, too: so little of each value that nothing is counted of it.
fn most_of_little(metric: &'static str, fine: &[f64], bad: &[f64]) -> Rule {
    let little = |values: &[f64]| values.iter().map(|value| (*value, 0.001)).collect();
    Rule { fine: little(fine), bad: little(bad), ..most(metric, fine, bad) }
}

/// It goes off when nothing comes.
fn silence(metric: &'static str, alarms: &'static [&'static str]) -> Rule {
    Rule { alarms, ..most(metric, &[0.0], &[]) }
}

/// One call in twenty may take far longer than the limit, in milliseconds. They are so many that
/// what the functions really took does not matter.
fn slow(limit: f64, alarms: &'static [&'static str]) -> Rule {
    Rule {
        metric: "AWS/Lambda Duration",
        alarms,
        fine: vec![(limit, 960e3), (10.0 * limit, 40e3)],
        bad: vec![(1.0, 94e6), (limit + 1.0, 6e6)],
        adds_up: false,
    }
}

/// The table. The rules of one metric are tried in this order.
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
        // Who works on batches, or calls the payment provider.
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
        // Who looks at many things.
        slow(
            5_000.0,
            &[
                "CheckSagasDurationAlarm",
                "RecordFailureDurationAlarm",
                "ReportFailuresDurationAlarm",
                "SweepEventsDurationAlarm",
            ],
        ),
        // One call for each mapping, with a pause between.
        slow(12_000.0, &["CheckConsumersDurationAlarm"]),
        // Who lists everything at the payment provider.
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
    until(&what, PATIENCE.max(window.min(LONGEST)), async || {
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
            // What other work has left in the window goes out of it.
            tokio::time::sleep(LIFE).await;
            let other = other.into_iter().map(|alarm| (alarm.alarm_name, alarm.state_value));
            Look::Saw(format!("{:?}", other.collect::<Vec<_>>()))
        })
    })
    .await
}

/// The alarms of a rule go off, and out.
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
async fn every_alarm_goes_off_and_out_and_on_call_is_told() -> Result<()> {
    let stack = Stack::connect().await?;
    let alarms = stack.alarms().await?;
    let rules = rules();
    // The alarms of each rule, and the rules of each metric.
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
        // What was measured for a short window stays in a longer one, and the emulator's alarms see
        // all of a metric, whatever its dimensions: so the longest windows come first.
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
    until_true("on-call to be told of each", PATIENCE, async || {
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
