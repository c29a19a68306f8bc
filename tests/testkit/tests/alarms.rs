//! Compares every alarm of the templates with a table of metrics and conditions. A missing, new or different
//! alarm fails these tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use contracts::saga::{COMPENSATE, STEPS};
use serde_json::{Value, json};
use testkit::template::{Template, kebab, root};

/// The functions whose errors raise no alarm of their own.
const WITHOUT_ERROR_ALARM: [&str; 5] = [
    "CheckSagas",  // It runs too rarely to fail twice in a row; SagaChecks covers it.
    "ImportSite",  // Its errors are expected: a registration that can't be read.
    "ReceiveKits", // Its errors are expected: a delivery that can't be read.
    "ReconcileSubscriptions", // As CheckSagas; SubscriptionReconciliation covers it.
    "ReserveKits", // Its errors are expected: kits out of stock.
];
/// The functions that run once an hour, for which a single slow run raises the alarm.
const HOURLY: [&str; 1] = ["ReconcileSubscriptions"];
/// The consumers of streams.
const STREAM_CONSUMERS: [&str; 5] =
    ["DetectBreaches", "PublishEvents", "StoreReadings", "WatchNetwork", "WatchStock"];
/// The consumers whose mappings count their events: those of streams and of work queues. The mappings of record-failure
/// do not count their events, because their queues have alarms on depth and age.
const CONSUMERS_WITH_EVENT_COUNT: [&str; 8] = [
    "CancelSubscription",
    "DetectBreaches",
    "InitializeSubscription",
    "PublishEvents",
    "StoreHeldReadings",
    "StoreReadings",
    "WatchNetwork",
    "WatchStock",
];
/// The functions that call the payment provider.
const PROVIDER_CALLERS: [&str; 2] = ["CancelSubscription", "InitializeSubscription"];
/// Returns where an onboarding can fail: in a step, in the state that undoes it, or at its start.
fn failure_points() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).chain([COMPENSATE, "Start"]).collect()
}

/// The work queues. All other queues hold failures.
const WORK_QUEUES: [&str; 3] =
    ["CancelSubscriptionQueue", "InitializeSubscriptionQueue", "ReadingsOnHold"];
/// The tables whose throttles raise an alarm. The others get a few writes per site, or (network, limits and refusals)
/// one write for many events or requests.
const BUSY_TABLES: [&str; 3] = ["EventGuardsTable", "EventsTable", "ReadingsTable"];
/// The alarms whose description says what to do. The description of every other alarm names a runbook.
const SELF_EXPLANATORY: [&str; 20] = [
    "CompensationIncomplete",
    "DetectBreachesFailures",
    "DetectBreachesIteratorAge",
    "EventsStreamThrottles",
    "FailureDestinations",
    "FailureReports",
    "FunctionThrottles",
    "NewFailures",
    "OldestUnpublishedEvent",
    "OpenFailures",
    "PublishEventsFailures",
    "PublishEventsIteratorAge",
    "ReadingsStreamThrottles",
    "SagaChecks",
    "StoreReadingsFailures",
    "StoreReadingsIteratorAge",
    "StuckSagas",
    "SubscriptionReconciliation",
    "WatchStockFailures",
    "WatchStockIteratorAge",
];

/// The condition of an alarm: `threshold` is crossed in each of `periods` periods of `period` seconds.
/// `missing_data` is the treatment of missing data.
#[derive(Debug, PartialEq)]
struct Alarm {
    metric: String,
    dimensions: Vec<(String, String)>,
    statistic: String,
    /// Whether missing data is replaced by 0 before the alarm evaluates it.
    filled: bool,
    period: i64,
    periods: i64,
    operator: String,
    threshold: Value,
    missing_data: String,
}

/// The rule of one metric. A dimension is `name=value`, and `$` is replaced by each item of `about`.
struct Rule {
    names: &'static str,
    about: Vec<String>,
    metric: &'static str,
    dimensions: &'static [&'static str],
    when: (&'static str, &'static str, i64),
    periods: (i64, i64),
    missing_data: &'static str,
}

/// Returns the table: one line for each kind of alarm. The `$` in a name is replaced by each item of `about`.
#[rustfmt::skip]
fn rules(template: &Template) -> Vec<Rule> {
    let rule = |names, about: &[&str], metric, dimensions, when, periods, missing_data| Rule {
        names, about: about.iter().map(|about| (*about).to_owned()).collect(), metric, dimensions, when, periods, missing_data,
    };
    let functions = template.functions();
    let with_errors: Vec<_> = functions.iter().copied().filter(|name| !WITHOUT_ERROR_ALARM.contains(name)).collect();
    let queues = failure_queues(template);
    let (sum, most, count) = ("Sum", "Maximum", "SampleCount");
    let (ok, bad) = ("notBreaching", "breaching");
    vec![
        //   alarm                      about             metric                                         dimensions                                      statistic, operator, threshold   periods x seconds  silence
        rule("CompensationIncomplete",  &[""],            "AWS/States ExecutionsFailed",                 &["StateMachineArn=SiteTeardown"],              (sum, ">", 0),                   (1, 60),           ok),
        rule("$Aborted",                &["SiteOnboarding", "SiteTeardown"], "AWS/States ExecutionsAborted", &["StateMachineArn=$"],                        (sum, ">", 0),                   (1, 60),           ok),
        rule("$TimedOut",               &["SiteOnboarding"], "AWS/States ExecutionsTimedOut",            &["StateMachineArn=$"],                         (sum, ">", 0),                   (1, 60),           ok),
        rule("$Failed",                 &failure_points(),         "Fieldstation OnboardingsFailed",              &["function=CloseSiteFunction", "step=$"],      (sum, ">", 0),                   (1, 300),          ok),
        rule("StuckSagas",              &[""],            "Fieldstation StuckSagas",                     &["function=CheckSagasFunction"],               (most, ">", 0),                  (1, 300),          ok),
        rule("SagaChecks",              &[""],            "Fieldstation StuckSagas",                     &["function=CheckSagasFunction"],               (count, "<", 1),                 (3, 300),          bad),
        rule("SubscriptionFindings",    &[""],            "Fieldstation SubscriptionFindings",           &["function=ReconcileSubscriptionsFunction"],   (most, ">", 0),                  (1, 3600),         ok),
        rule("SubscriptionReconciliation", &[""],         "Fieldstation SubscriptionFindings",           &["function=ReconcileSubscriptionsFunction"],   (count, "<", 1),                 (3, 3600),         bad),
        rule("$Circuit",                &PROVIDER_CALLERS, "Fieldstation ProviderCircuitOpen",            &["function=$Function"],                        (sum, ">", 0),                   (1, 600),          ok),
        rule("SweptEvents",             &[""],            "Fieldstation EventsPublished",                &["function=SweepEventsFunction"],              (sum, ">", 0),                   (5, 60),           ok),
        rule("OldestUnpublishedEvent",  &[""],            "Fieldstation OldestUnpublishedEventAgeSeconds", &["function=SweepEventsFunction"],            (most, ">", 300),                (5, 60),           bad),
        rule("OpenFailures",            &[""],            "Fieldstation OpenFailures",                   &["function=ReportFailuresFunction"],           (most, ">", 0),                  (1, 60),           ok),
        rule("NewFailures",             &[""],            "Fieldstation FailuresRecorded",               &["function=RecordFailureFunction"],            (sum, ">", 0),                   (1, 300),          ok),
        rule("FailureReports",          &[""],            "Fieldstation OpenFailures",                   &["function=ReportFailuresFunction"],           (count, "<", 1),                 (5, 60),           bad),
        rule("ConsumersNotRunning",     &[""],            "Fieldstation ConsumersNotRunning",            &["function=CheckConsumersFunction"],           (most, ">", 0),                  (3, 60),           ok),
        rule("ConsumerChecks",          &[""],            "Fieldstation ConsumersNotRunning",            &["function=CheckConsumersFunction"],           (count, "<", 1),                 (5, 60),           bad),
        rule("$Polls",                  &CONSUMERS_WITH_EVENT_COUNT,         "AWS/Lambda PolledEventCount",                 &["EventSourceMappingUUID=$Mapping"],           (count, "<", 1),                 (5, 60),           bad),
        rule("$",                       &queues,          "AWS/SQS ApproximateNumberOfMessagesVisible",  &["QueueName=$.QueueName"],                     (most, ">", 0),                  (5, 60),           ok),
        rule("$Age",                    &queues,          "AWS/SQS ApproximateAgeOfOldestMessage",       &["QueueName=$.QueueName"],                     (most, ">", 900),                (1, 60),           ok),
        rule("$IteratorAge",            &STREAM_CONSUMERS,      "AWS/Lambda IteratorAge",                      &["FunctionName=$Function"],                    (most, ">", 60_000),             (3, 60),           ok),
        rule("$Failures",               &STREAM_CONSUMERS,      "AWS/Lambda OnFailureDestinationDeliveredEventCount", &["EventSourceMappingUUID=$Mapping"],    (sum, ">", 0),                   (1, 60),           ok),
        rule("$Dropped",                &STREAM_CONSUMERS,      "AWS/Lambda DroppedEventCount",                &["EventSourceMappingUUID=$Mapping"],           (sum, ">", 0),                   (1, 60),           ok),
        rule("ReadingsStreamThrottles", &[""],            "AWS/Kinesis WriteProvisionedThroughputExceeded", &["StreamName=ReadingsStream"],              (sum, ">", 0),                   (5, 60),           ok),
        rule("EventsStreamThrottles",   &[""],            "AWS/Kinesis WriteProvisionedThroughputExceeded", &["StreamName=EventsStream"],                (sum, ">", 0),                   (5, 60),           ok),
        rule("$Throttles",              &BUSY_TABLES,     "AWS/DynamoDB WriteThrottleEvents",            &["TableName=$"],                               (sum, ">", 0),                   (5, 60),           ok),
        rule("$Errors",                 &with_errors,     "AWS/Lambda Errors",                           &["FunctionName=$Function"],                    (sum, ">=", 3),                  (2, 60),           ok),
        rule("FunctionThrottles",       &[""],            "AWS/Lambda Throttles",                        &[],                                            (sum, ">", 0),                   (3, 60),           ok),
        rule("FailureDestinations",     &[""],            "AWS/Lambda DestinationDeliveryFailures",      &[],                                            (sum, ">", 0),                   (1, 60),           ok),
    ]
}

/// Returns the expression of a function's canary alarm, and the inputs of the expression. A canary alarm rolls a new
/// version back.
fn canary(function: &str) -> (Value, Vec<Value>) {
    let expression = "IF(FILL(calls, 0) >= ${CanaryMinimumCalls}, \
                      ((FILL(errors, 0) + FILL(items, 0)) / calls > 0.001) + (FILL(p95, 0) > 2 * ${accepted}), \
                      (FILL(calls, 0) > 0) * (FILL(errors, 0) + FILL(items, 0) >= 3))";
    let accepted = json!({ "accepted": ["AcceptedDuration", kebab(function), "p95"] });
    let version = format!("{function}Function.Version.Version");
    let of_lambda = |id: &str, metric: &str, statistic: &str| {
        let dimensions = json!([
            { "Name": "FunctionName", "Value": format!("{function}Function") },
            { "Name": "Resource", "Value": format!("${{{function}Function}}:live") },
            { "Name": "ExecutedVersion", "Value": version },
        ]);
        input(id, "AWS/Lambda", metric, statistic, &dimensions)
    };
    let ours = json!([
        { "Name": "function", "Value": format!("{function}Function") },
        { "Name": "version", "Value": version },
    ]);
    let inputs = vec![
        of_lambda("calls", "Invocations", "Sum"),
        of_lambda("errors", "Errors", "Sum"),
        of_lambda("p95", "Duration", "p95"),
        input("items", "Fieldstation", "BatchItemFailures", "Sum", &ours),
    ];
    (json!({ "Id": "worse", "Expression": [expression, accepted] }), inputs)
}

fn input(id: &str, namespace: &str, metric: &str, statistic: &str, dimensions: &Value) -> Value {
    let metric = json!({ "Namespace": namespace, "MetricName": metric, "Dimensions": dimensions });
    json!({ "Id": id, "ReturnData": false, "MetricStat": { "Stat": statistic, "Period": 60, "Metric": metric } })
}

#[test]
fn a_new_version_is_rolled_back_for_these_minutes() {
    let template = Template::read();
    let minimum = &template.0["Parameters"]["CanaryMinimumCalls"]["Default"];
    let accepted = &template.0["Mappings"]["AcceptedDuration"]["get-site"]["p95"];
    assert_eq!((minimum, accepted), (&json!(100), &json!(100)), "the minutes below are for these");
    let metrics = &template.properties("GetSiteCanaryAlarm")["Metrics"];
    let expression = text(&metrics[0]["Expression"][0])
        .replace("${CanaryMinimumCalls}", "100")
        .replace("${accepted}", "100");

    let quiet = (None, None, None, None);
    let minute = |calls: f64, errors: f64, items: Option<f64>, p95: f64| {
        (Some(calls), Some(errors), items, Some(p95))
    };
    let minutes = [
        // Calls, errors, failed items of batches if there are any, and the p95 in milliseconds.
        (quiet, false),
        // Lambda reports calls by version only while the alias has two versions: the deployment is over.
        ((None, None, Some(3.0), None), false),
        // Few calls: three failures roll back, however slow the calls are.
        (minute(20.0, 2.0, None, 5_000.0), false),
        (minute(99.0, 1.0, Some(1.0), 50.0), false),
        (minute(99.0, 1.0, Some(2.0), 50.0), true),
        (minute(3.0, 3.0, None, 50.0), true),
        // Enough calls: more than one failure in a thousand, or twice the accepted duration, roll back.
        (minute(100.0, 0.0, None, 200.0), false),
        (minute(100.0, 0.0, None, 200.1), true),
        (minute(100.0, 1.0, None, 50.0), true),
        (minute(999.0, 1.0, None, 50.0), true),
        (minute(1_000.0, 1.0, None, 50.0), false),
        (minute(1_000.0, 1.0, Some(1.0), 50.0), true),
        (minute(20_000.0, 12.0, Some(8.0), 150.0), false),
        (minute(20_000.0, 12.0, Some(9.0), 150.0), true),
        (minute(20_000.0, 21.0, None, 201.0), true),
    ];
    for (minute, rolled_back) in minutes {
        let (calls, errors, items, p95) = minute;
        let data =
            BTreeMap::from([("calls", calls), ("errors", errors), ("items", items), ("p95", p95)]);
        let worse = Math { rest: &expression, data: &data }.whole();
        assert_eq!(worse.is_some_and(|worse| worse > 0.0), rolled_back, "{data:?}: {worse:?}");
    }
}

/// CloudWatch's metric math for one minute, as far as it is needed here. If a value is missing, each result that
/// depends on it is missing, except that of FILL.
struct Math<'a> {
    rest: &'a str,
    data: &'a BTreeMap<&'static str, Option<f64>>,
}

impl Math<'_> {
    fn whole(mut self) -> Option<f64> {
        let value = self.comparison();
        assert_eq!(self.rest.trim(), "", "this can't be read");
        value
    }

    fn takes(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn comparison(&mut self) -> Option<f64> {
        let left = self.sum();
        let truth = |holds: bool| f64::from(u8::from(holds));
        if self.takes(">=") {
            self.sum().and_then(|right| Some(truth(left? >= right)))
        } else if self.takes(">") {
            self.sum().and_then(|right| Some(truth(left? > right)))
        } else {
            left
        }
    }

    fn sum(&mut self) -> Option<f64> {
        let mut left = self.product();
        while self.takes("+") {
            let right = self.product();
            left = left.and_then(|left| Some(left + right?));
        }
        left
    }

    fn product(&mut self) -> Option<f64> {
        let mut left = self.atom();
        loop {
            let divides = self.takes("/");
            if !divides && !self.takes("*") {
                return left;
            }
            let right = self.atom();
            left = left.and_then(|left| Some(if divides { left / right? } else { left * right? }));
        }
    }

    fn atom(&mut self) -> Option<f64> {
        if self.takes("(") {
            let value = self.comparison();
            assert!(self.takes(")"), "a parenthesis before {:?}", self.rest);
            return value;
        }
        let rest = self.rest.trim_start();
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '.');
        let (word, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.rest = rest;
        if let Ok(number) = word.parse() {
            return Some(number);
        }
        if !self.takes("(") {
            return *self.data.get(word).unwrap_or_else(|| panic!("{word:?} is not a metric"));
        }
        let mut values = vec![self.comparison()];
        while self.takes(",") {
            values.push(self.comparison());
        }
        assert!(self.takes(")"), "a parenthesis before {:?}", self.rest);
        match (word, &values[..]) {
            ("FILL", [value, instead]) => value.or(*instead),
            ("IF", [holds, then, other]) => {
                if (*holds)? > 0.0 {
                    *then
                } else {
                    *other
                }
            }
            _ => panic!("{word} of {values:?}"),
        }
    }
}

/// Returns the alarms by their logical ids.
fn alarms(template: &Template) -> BTreeMap<&str, &Value> {
    let alarms = template.resources("AWS::CloudWatch::Alarm");
    alarms.into_iter().map(|(id, alarm)| (id, &alarm["Properties"])).collect()
}

/// Returns the queues that hold failures.
fn failure_queues(template: &Template) -> Vec<&str> {
    let queues = template.resources("AWS::SQS::Queue").into_keys();
    queues.filter(|queue| !WORK_QUEUES.contains(queue)).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Returns an alarm as the template defines it.
fn found(properties: &Value) -> Alarm {
    let filled = properties["Metrics"][0]["Expression"] == "FILL(writes, 0)";
    let stat = if filled { &properties["Metrics"][1]["MetricStat"] } else { &Value::Null };
    // The metric is at the top of an alarm, or in the expression that fills it.
    let metric = if filled { &stat["Metric"] } else { properties };
    let measured = if filled { stat } else { properties };
    let dimensions = metric["Dimensions"].as_array().into_iter().flatten();
    let statistic =
        ["Stat", "Statistic", "ExtendedStatistic"].map(|name| text(&measured[name])).concat();
    Alarm {
        metric: format!("{} {}", text(&metric["Namespace"]), text(&metric["MetricName"])),
        dimensions: dimensions.map(|it| (text(&it["Name"]), text(&it["Value"]))).collect(),
        statistic,
        filled,
        period: measured["Period"].as_i64().unwrap_or_default(),
        periods: properties["EvaluationPeriods"].as_i64().unwrap_or_default(),
        operator: text(&properties["ComparisonOperator"]),
        threshold: properties["Threshold"].clone(),
        missing_data: text(&properties["TreatMissingData"]),
    }
}

/// Returns the expected alarms on a single metric, by their logical ids.
fn expected(template: &Template) -> BTreeMap<String, Alarm> {
    let mut expected = BTreeMap::new();
    for Rule { names, about, metric, dimensions, when, periods, missing_data } in rules(template) {
        let (statistic, operator, threshold) = when;
        let operator = match operator {
            ">" => "GreaterThanThreshold",
            ">=" => "GreaterThanOrEqualToThreshold",
            _ => "LessThanThreshold",
        };
        for about in about {
            let dimensions = dimensions.iter().map(|dimension| {
                let (name, value) = dimension.split_once('=').expect("name=value");
                (name.to_owned(), value.replace('$', &about))
            });
            let alarm = Alarm {
                metric: metric.to_owned(),
                dimensions: dimensions.collect(),
                statistic: statistic.to_owned(),
                // An alarm on DynamoDB's metrics ignores TreatMissingData.
                filled: metric.starts_with("AWS/DynamoDB"),
                period: periods.1,
                periods: periods.0,
                operator: operator.to_owned(),
                threshold: json!(threshold),
                missing_data: missing_data.to_owned(),
            };
            let before = expected.insert(format!("{}Alarm", names.replace('$', &about)), alarm);
            assert_eq!(before, None, "two rules for {names} of {about}");
        }
    }
    for function in template.functions() {
        let (periods, period) = if HOURLY.contains(&function) { (1, 300) } else { (3, 300) };
        let alarm = Alarm {
            metric: "AWS/Lambda Duration".to_owned(),
            dimensions: vec![("FunctionName".to_owned(), format!("{function}Function"))],
            statistic: "p95".to_owned(),
            filled: false,
            period,
            periods,
            operator: "GreaterThanThreshold".to_owned(),
            threshold: json!(["AcceptedDuration", kebab(function), "alarm"]),
            missing_data: "notBreaching".to_owned(),
        };
        expected.insert(format!("{function}DurationAlarm"), alarm);
    }
    for (table, index) in indexes(template) {
        // A table's metric does not count the throttles of its indexes.
        let dimensions = [("TableName", table), ("GlobalSecondaryIndexName", index)];
        let alarm = Alarm {
            metric: "AWS/DynamoDB WriteThrottleEvents".to_owned(),
            dimensions: dimensions.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            statistic: "Sum".to_owned(),
            filled: true,
            period: 60,
            periods: 5,
            operator: "GreaterThanThreshold".to_owned(),
            threshold: json!(0),
            missing_data: "notBreaching".to_owned(),
        };
        let capital = index[..1].to_uppercase() + &index[1..];
        expected.insert(format!("{table}{capital}ThrottlesAlarm"), alarm);
    }
    expected
}

/// Returns the global secondary indexes, each with its table.
fn indexes(template: &Template) -> Vec<(&str, &str)> {
    let tables = template.resources("AWS::DynamoDB::Table").into_iter();
    let indexes = tables.flat_map(|(table, resource)| {
        let indexes = resource["Properties"]["GlobalSecondaryIndexes"].as_array();
        indexes
            .into_iter()
            .flatten()
            .filter_map(move |index| Some((table, index["IndexName"].as_str()?)))
    });
    indexes.collect()
}

#[test]
fn every_alarm_matches_the_table() {
    let template = Template::read();
    let expected = expected(&template);
    let alarms = alarms(&template);
    let of_metrics: BTreeMap<_, _> =
        alarms.into_iter().filter(|(id, _)| !id.ends_with("CanaryAlarm")).collect();
    let names: BTreeSet<_> = of_metrics.keys().map(|id| (*id).to_owned()).collect();
    let expected_ids: BTreeSet<_> = expected.keys().cloned().collect();
    let (missing, new) = (&expected_ids - &names, &names - &expected_ids);
    assert!(
        missing.is_empty() && new.is_empty(),
        "missing: {missing:?}; not in the table: {new:?}"
    );
    for (id, alarm) in of_metrics {
        assert_eq!(found(alarm), expected[id], "{id}");
        // These properties would change the alarm in a way that the table does not show.
        for property in ["EvaluateLowSampleCountPercentile", "Unit"] {
            assert_eq!(alarm[property], Value::Null, "{id}");
        }
        // The newest minute has no data yet, and FILL sets it to 0. So not all periods can be above the threshold, and
        // three of five are enough.
        let datapoints = match id {
            _ if expected[id].filled => json!(3),
            // After a failure of a few seconds, one sweep publishes the remaining events. That must raise no alarm.
            "SweptEventsAlarm" => json!(2),
            _ => Value::Null,
        };
        assert_eq!(alarm["DatapointsToAlarm"], datapoints, "{id}");
    }
}

/// Returns the functions that are deployed gradually, without the suffix `Function`.
fn gradual(template: &Template) -> Vec<&str> {
    let mut functions = template.functions();
    functions.retain(|function| {
        !template.properties(&format!("{function}Function"))["DeploymentPreference"].is_null()
    });
    functions
}

#[test]
fn a_gradual_deployment_is_rolled_back_by_its_own_alarm() {
    let template = Template::read();
    let alarms = alarms(&template);
    let canaries = alarms.keys().filter(|id| id.ends_with("CanaryAlarm"));
    let gradual = gradual(&template);
    assert_eq!(canaries.count(), gradual.len());
    for function in gradual {
        let id = format!("{function}CanaryAlarm");
        let alarm = alarms.get(id.as_str()).unwrap_or_else(|| panic!("{id} is missing"));
        let (worse, inputs) = canary(function);
        let metrics = alarm["Metrics"].as_array().expect("metrics");
        let (first, others) = metrics.split_first().expect("the expression");
        let (first, worse) = ((text(&first["Id"]), &first["Expression"]), &worse["Expression"]);
        assert_eq!(first, ("worse".to_owned(), worse), "{id}");
        assert_eq!(others, inputs, "{id}");
        let when = found(alarm);
        assert_eq!(
            (when.operator.as_str(), &when.threshold, when.periods, when.missing_data.as_str()),
            ("GreaterThanThreshold", &json!(0), 5, "notBreaching"),
            "{id}"
        );
        // One bad minute of five is enough, because the newest minutes have no data yet.
        assert_eq!(alarm["DatapointsToAlarm"], 1, "{id}");
        // Without gradual deployments there is no version to compare with.
        assert_eq!(template.0["Resources"][&id]["Condition"], "UseGradualDeployment", "{id}");
        let preference =
            &template.properties(&format!("{function}Function"))["DeploymentPreference"];
        assert_eq!(preference["Alarms"], json!([id]), "{function}");
    }
}

#[test]
fn duration_limits_are_above_the_accepted_p95_and_below_the_timeout() {
    let template = Template::read();
    let accepted = template.0["Mappings"]["AcceptedDuration"].as_object().expect("the mapping");
    let functions: BTreeSet<_> = template.functions().into_iter().map(kebab).collect();
    assert_eq!(accepted.keys().cloned().collect::<BTreeSet<_>>(), functions);
    let default = template.0["Globals"]["Function"]["Timeout"].as_i64().expect("a timeout");
    let gradual = gradual(&template);
    for function in template.functions() {
        let timeout = template.properties(&format!("{function}Function"))["Timeout"].as_i64();
        let timeout = 1000 * timeout.unwrap_or(default);
        let limit_of = |limit| accepted[&kebab(function)][limit].as_i64().expect("milliseconds");
        let p95 = &accepted[&kebab(function)]["p95"];
        assert_eq!(p95.is_i64(), gradual.contains(&function), "{function}: p95 is for canaries");
        let rolled_back = 2 * p95.as_i64().unwrap_or_default();
        assert!(
            rolled_back < limit_of("alarm"),
            "{function}: on-call gets an alarm before the rollback"
        );
        assert!(
            2 * limit_of("alarm") <= timeout,
            "{function}: {} of {timeout} ms",
            limit_of("alarm")
        );
    }
}

#[test]
fn every_alarm_notifies_on_call_and_describes_what_to_do() {
    let template = Template::read();
    let operations = fs::read_to_string(root().join("docs/operations.md")).expect("operations.md");
    for (id, alarm) in alarms(&template) {
        let name = id.strip_suffix("Alarm").unwrap_or_else(|| panic!("{id} is not named an alarm"));
        assert_eq!(alarm["AlarmActions"], json!(["OnCallTopic"]), "{id}");
        assert!(alarm["ActionsEnabled"].as_bool().unwrap_or(true), "{id} has no enabled action");
        let description = text(&alarm["AlarmDescription"]);
        let runbook = description.split_once("See the runbook ").and_then(|(_, rest)| {
            let name = rest.strip_suffix(" in docs/operations.md.");
            name.map(|name| format!("\n### {name}\n"))
        });
        if let Some(heading) = runbook {
            assert!(operations.contains(&heading), "{id}: no section{heading}");
        } else {
            assert!(
                SELF_EXPLANATORY.contains(&name),
                "{id} neither names a runbook nor describes what to do: {description}"
            );
            assert!(
                description.contains(". "),
                "the description of {id} is too short: {description}"
            );
        }
    }
}

#[test]
fn every_failure_queue_is_consumed_by_record_failure() {
    let template = Template::read();
    let mut consumed = BTreeMap::new();
    for (id, mapping) in template.resources("AWS::Lambda::EventSourceMapping") {
        let properties = &mapping["Properties"];
        if properties["FunctionName"] == "RecordFailureFunction.Alias" {
            let queue = text(&properties["EventSourceArn"]).replace(".Arn", "");
            let partial_batch_responses = json!(["ReportBatchItemFailures"]);
            assert_eq!(properties["FunctionResponseTypes"], partial_batch_responses, "{id}");
            assert_ne!(properties["Enabled"], false, "{id}");
            assert_eq!(consumed.insert(queue, id), None, "{id} is the second mapping of its queue");
        }
    }
    let queues: BTreeSet<_> = failure_queues(&template).into_iter().collect();
    assert_eq!(consumed.keys().map(String::as_str).collect::<BTreeSet<_>>(), queues);
    // record-failure may read queues with these names, in any service.
    for queue in queues.into_iter().filter(|queue| *queue != "FailureFiles") {
        let name = template.fixed_name(queue).expect("a fixed name");
        assert!(name.ends_with("-failures"), "{queue} is named {name}");
    }
}

/// Appends the sources of the deployed code.
fn sources(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).expect("a source"));
        }
    }
}

#[test]
fn every_custom_metric_of_an_alarm_is_written_by_the_code() {
    let mut written = String::new();
    for folder in ["functions", "shared"] {
        sources(&root().join(folder), &mut written);
    }
    let ours = expected(&Template::read()).into_values().filter_map(|alarm| {
        Some((alarm.metric.strip_prefix("Fieldstation ")?.to_owned(), alarm.dimensions))
    });
    let items = vec![("version".to_owned(), String::new())];
    for (metric, dimensions) in ours.chain([("BatchItemFailures".to_owned(), items)]) {
        assert!(written.contains(&format!("\"{metric}\"")), "no code writes {metric}");
        for (dimension, _) in dimensions {
            assert!(
                written.contains(&format!("\"{dimension}\"")),
                "no code writes the dimension {dimension} of {metric}"
            );
        }
    }
}

#[test]
fn mappings_count_their_events() {
    let template = Template::read();
    for function in CONSUMERS_WITH_EVENT_COUNT {
        let mapping = template.properties(&format!("{function}Mapping"));
        assert_eq!(mapping["MetricsConfig"]["Metrics"], json!(["EventCount"]), "{function}");
    }
}
