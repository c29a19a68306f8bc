//! Rules: failures are never dropped.

use std::collections::BTreeMap;

use contracts::names::{CONSUMERS, Source};
use serde_json::{Value, json};
use testkit::template::kebab;

use crate::subject::{
    Objections, Subject, function_of, items, members, of_arn, queue_of, text, texts,
};

/// The longest retention of an SQS message, in seconds.
const FORTNIGHT: i64 = 1_209_600;
/// The event types of a function's `Events` that invoke it asynchronously.
const ASYNCHRONOUS: [&str; 6] =
    ["CloudWatchEvent", "EventBridgeRule", "S3", "SNS", "Schedule", "ScheduleV2"];

fn between(value: &Value, least: i64, most: i64) -> bool {
    value.as_i64().is_some_and(|number| (least..=most).contains(&number))
}

/// Returns the asynchronous calls of functions and queues: the resource that declares the call, the logical id
/// of its rule, and the target with its dead-letter queue and retry policy.
fn calls(subject: &Subject) -> Vec<(String, String, &Value)> {
    let mut calls = Vec::new();
    for (id, function) in subject.functions() {
        for (name, event) in members(&function["Events"]) {
            if ASYNCHRONOUS.contains(&text(&event["Type"])) {
                calls.push((id.to_owned(), format!("{id}{name}"), &event["Properties"]));
            }
        }
    }
    for (id, rule) in subject.template.resources("AWS::Events::Rule") {
        for target in items(&rule["Properties"]["Targets"]) {
            calls.push((id.to_owned(), id.to_owned(), target));
        }
    }
    for (id, schedule) in subject.template.resources("AWS::Scheduler::Schedule") {
        calls.push((id.to_owned(), id.to_owned(), &schedule["Properties"]["Target"]));
    }
    calls
}

pub fn called_asynchronously_with_a_destination(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, function) in subject.functions() {
        let target = format!("{id}.Alias");
        let of_a_rule = calls(subject).into_iter().any(|(_, _, call)| text(&call["Arn"]) == target);
        let events = members(&function["Events"]);
        let asynchronous = of_a_rule
            || events.into_iter().any(|(_, it)| ASYNCHRONOUS.contains(&text(&it["Type"])));
        if asynchronous {
            let config = &function["EventInvokeConfig"];
            let destination = &config["DestinationConfig"]["OnFailure"];
            let queue = of_arn(&destination["Destination"]);
            objections.unless(
                destination["Type"] == "SQS" && subject.is(queue, "AWS::SQS::Queue"),
                id,
                "has no failure queue (EventInvokeConfig.DestinationConfig.OnFailure)",
            );
            objections.unless(
                between(&config["MaximumRetryAttempts"], 1, 2)
                    && between(&config["MaximumEventAgeInSeconds"], 60, 21_600),
                id,
                "does not say how often, and for how long, a call is tried again",
            );
        }
    }
    objections
}

pub fn targets_with_dead_letters(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, rule, call) in calls(subject) {
        let queue = of_arn(&call["DeadLetterConfig"]["Arn"]);
        let there = subject.is(queue, "AWS::SQS::Queue");
        objections.unless(there, &id, format!("{rule} has no queue for what it can't deliver"));
        let retries = &call["RetryPolicy"];
        objections.unless(
            between(&retries["MaximumRetryAttempts"], 1, 185)
                && between(&retries["MaximumEventAgeInSeconds"], 60, 86_400),
            &id,
            format!("{rule} does not say how long it tries"),
        );
    }
    objections
}

pub fn dead_letters_that_can_be_sent(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, rule, call) in calls(subject) {
        let queue = of_arn(&call["DeadLetterConfig"]["Arn"]);
        let sender = format!("{rule}.Arn");
        let allowed = subject.template.resources("AWS::SQS::QueuePolicy").values().any(|policy| {
            let of_queue = texts(&policy["Properties"]["Queues"]).contains(&queue);
            let mut statements = items(&policy["Properties"]["PolicyDocument"]["Statement"]);
            of_queue
                && statements.any(|it| {
                    it["Effect"] == "Allow"
                        && it["Action"] == "sqs:SendMessage"
                        && it["Principal"]["Service"] == "events.amazonaws.com"
                        && of_arn(&it["Resource"]) == queue
                        && texts(&it["Condition"]["ArnEquals"]["aws:SourceArn"])
                            .contains(&sender.as_str())
                })
        });
        objections.unless(allowed, &id, format!("{rule} may not send to its dead letters {queue}"));
    }
    objections
}

pub fn work_queues_with_dead_letters(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for mapping in subject.mappings().values() {
        let (queue, function) = (queue_of(mapping), function_of(mapping));
        if subject.is(queue, "AWS::SQS::Queue") && function != "RecordFailureFunction" {
            let redrive = &subject.template.properties(queue)["RedrivePolicy"];
            let dead_letters = of_arn(&redrive["deadLetterTargetArn"]);
            objections.unless(
                subject.is(dead_letters, "AWS::SQS::Queue")
                    && between(&redrive["maxReceiveCount"], 3, 10),
                queue,
                "has no dead letters after 3 to 10 receives",
            );
        }
    }
    objections
}

pub fn queues_that_keep(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, queue) in subject.template.resources("AWS::SQS::Queue") {
        let kept = &queue["Properties"]["MessageRetentionPeriod"];
        objections.unless(*kept == json!(FORTNIGHT), id, "keeps messages for less than 14 days");
    }
    objections
}

pub fn queues_that_hide_long_enough(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for mapping in subject.mappings().values() {
        let (queue, function) = (queue_of(mapping), function_of(mapping));
        if subject.is(queue, "AWS::SQS::Queue") {
            let hidden = subject.template.properties(queue)["VisibilityTimeout"].as_i64();
            let least = 6 * subject.timeout(function);
            objections.unless(
                hidden.is_some_and(|seconds| seconds >= least),
                queue,
                format!("hides a message for less than {least} s, six times {function}'s time-out"),
            );
        }
    }
    objections
}

pub fn partial_answers(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, mapping) in subject.mappings() {
        let partial = mapping["FunctionResponseTypes"] == json!(["ReportBatchItemFailures"]);
        objections.unless(partial, id, "one bad record fails its whole batch");
    }
    objections
}

pub fn streams_that_give_up(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, mapping) in subject.stream_mappings() {
        objections.unless(
            between(&mapping["MaximumRetryAttempts"], 1, 10_000),
            id,
            "tries without end: a record that can't be worked on stops its shard",
        );
        // Half of the shortest retention of a stream's records.
        objections.unless(
            between(&mapping["MaximumRecordAgeInSeconds"], 60, 43_200),
            id,
            "gives up so late that the stream may have dropped the record before",
        );
        let bisects = mapping["BisectBatchOnFunctionError"] == true;
        objections.unless(bisects, id, "gives a whole batch up for one record of it");
    }
    objections
}

pub fn streams_that_set_aside(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, mapping) in subject.stream_mappings() {
        let bucket = of_arn(&mapping["DestinationConfig"]["OnFailure"]["Destination"]);
        let there = subject.is(bucket, "AWS::S3::Bucket");
        objections.unless(
            there,
            id,
            "drops what it gives up on: no bucket takes it, with its payload",
        );
        let told = &subject.template.properties(bucket)["NotificationConfiguration"];
        let queue = of_arn(&told["QueueConfigurations"][0]["Queue"]);
        objections.unless(
            !there || queue == "FailureFiles",
            bucket,
            "tells nobody of its files: no notification to FailureFiles",
        );
        let filter = &told["QueueConfigurations"][0]["Filter"]["S3Key"]["Rules"][0];
        objections.unless(
            !there || text(&filter["Name"]) == "prefix" && text(&filter["Value"]) == "aws/lambda/",
            bucket,
            "tells of files that record-failure may not read: no filter by the prefix aws/lambda/",
        );
        let function = function_of(mapping);
        let mut statements = items(&subject.template.properties(function)["Policies"])
            .flat_map(|policy| items(&policy["Statement"]));
        let place = format!("${{{bucket}.Arn}}/aws/lambda/*");
        let may = statements.any(|it| {
            texts(&it["Action"]).contains(&"s3:PutObject")
                && texts(&it["Resource"]).contains(&place.as_str())
        });
        objections.unless(
            !there || may,
            function,
            format!("may not put what it gives up on into {bucket}"),
        );
    }
    objections
}

pub fn streams_from_their_beginning(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, mapping) in subject.stream_mappings() {
        let oldest = mapping["StartingPosition"] == "TRIM_HORIZON";
        objections.unless(oldest, id, "skips what was written before the mapping was made");
    }
    objections
}

/// Checks that check-consumers expects exactly the mappings of the templates.
pub fn mappings_that_are_checked(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    let mut expected: BTreeMap<String, &str> = CONSUMERS
        .iter()
        .map(|consumer| {
            let source = match consumer.source {
                Source::Queue(name) => ("AWS::SQS::Queue", name),
                Source::Stream(name) => ("AWS::Kinesis::Stream", name),
                Source::Table(name) => ("AWS::DynamoDB::Table", name),
            };
            (format!("{} {} {}", consumer.function, source.0, source.1), consumer.function)
        })
        .collect();
    for (id, mapping) in subject.mappings() {
        let source = text(&mapping["EventSourceArn"]).split('.').next().unwrap_or_default();
        let kind = text(&subject.template.0["Resources"][source]["Type"]);
        let name = subject.template.fixed_name(source).unwrap_or_default();
        let function = kebab(function_of(mapping).trim_end_matches("Function"));
        objections.unless(
            expected.remove(&format!("{function} {kind} {name}")).is_some(),
            id,
            "is not expected by check-consumers: it is missing in contracts::names::CONSUMERS",
        );
    }
    for (consumer, function) in expected {
        objections.unless(false, function, format!("{consumer}: no template has this mapping"));
    }
    objections
}

pub fn events_in_order(subject: &Subject) -> Objections {
    let mut objections = Objections::default();
    for (id, mapping) in subject.stream_mappings() {
        if text(&mapping["EventSourceArn"]) == "EventsTable.StreamArn" {
            let one = mapping["ParallelizationFactor"] == 1;
            objections.unless(one, id, "works on one entity's events side by side");
        }
    }
    objections
}
