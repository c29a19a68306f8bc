//! Rules: failures are never dropped.

use std::collections::BTreeMap;

use contracts::{
    consumers::{EVENT_CONSUMERS, EventSource, event_consumer},
    names::{CONSUMERS, Source},
};
use serde_json::{Value, json};
use testkit::template::kebab;

use crate::subject::{
    Subject, Violations, function_of, items, members, queue_of, resource_of_arn, text, texts,
};

/// The maximum retention of an SQS message, in seconds: 14 days.
const MAX_RETENTION_SECONDS: i64 = 1_209_600;
/// The event types of a function's `Events` that invoke it asynchronously.
const ASYNCHRONOUS: [&str; 6] =
    ["CloudWatchEvent", "EventBridgeRule", "S3", "SNS", "Schedule", "ScheduleV2"];

fn between(value: &Value, min: i64, max: i64) -> bool {
    value.as_i64().is_some_and(|number| (min..=max).contains(&number))
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

pub fn asynchronous_functions_have_a_failure_queue(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, function) in subject.functions() {
        let target = format!("{id}.Alias");
        let of_a_rule = calls(subject).into_iter().any(|(_, _, call)| text(&call["Arn"]) == target);
        let events = members(&function["Events"]);
        let asynchronous = of_a_rule
            || events.into_iter().any(|(_, it)| ASYNCHRONOUS.contains(&text(&it["Type"])));
        if asynchronous {
            let config = &function["EventInvokeConfig"];
            let destination = &config["DestinationConfig"]["OnFailure"];
            let queue = resource_of_arn(&destination["Destination"]);
            violations.check(
                destination["Type"] == "SQS" && subject.is(queue, "AWS::SQS::Queue"),
                id,
                "has no failure queue (EventInvokeConfig.DestinationConfig.OnFailure)",
            );
            violations.check(
                between(&config["MaximumRetryAttempts"], 1, 2)
                    && between(&config["MaximumEventAgeInSeconds"], 60, 21_600),
                id,
                "does not limit the retries and the age of an event",
            );
        }
    }
    violations
}

pub fn targets_have_dead_letter_queues(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, rule, call) in calls(subject) {
        let queue = resource_of_arn(&call["DeadLetterConfig"]["Arn"]);
        let exists = subject.is(queue, "AWS::SQS::Queue");
        violations.check(exists, &id, format!("{rule} has no dead-letter queue"));
        let retries = &call["RetryPolicy"];
        violations.check(
            between(&retries["MaximumRetryAttempts"], 1, 185)
                && between(&retries["MaximumEventAgeInSeconds"], 60, 86_400),
            &id,
            format!("{rule} has no retry policy"),
        );
    }
    violations
}

pub fn dead_letters_may_be_sent(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, rule, call) in calls(subject) {
        let queue = resource_of_arn(&call["DeadLetterConfig"]["Arn"]);
        let sender = format!("{rule}.Arn");
        let allowed = subject.template.resources("AWS::SQS::QueuePolicy").values().any(|policy| {
            let of_queue = texts(&policy["Properties"]["Queues"]).contains(&queue);
            let mut statements = items(&policy["Properties"]["PolicyDocument"]["Statement"]);
            of_queue
                && statements.any(|it| {
                    it["Effect"] == "Allow"
                        && it["Action"] == "sqs:SendMessage"
                        && it["Principal"]["Service"] == "events.amazonaws.com"
                        && resource_of_arn(&it["Resource"]) == queue
                        && texts(&it["Condition"]["ArnEquals"]["aws:SourceArn"])
                            .contains(&sender.as_str())
                })
        });
        violations.check(
            allowed,
            &id,
            format!("{rule} may not send to its dead-letter queue {queue}"),
        );
    }
    violations
}

pub fn topics_take_events_of_their_rules_only(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, rule) in subject.template.resources("AWS::Events::Rule") {
        let targets = items(&rule["Properties"]["Targets"]).map(|target| text(&target["Arn"]));
        for topic in targets.filter(|target| subject.is(target, "AWS::SNS::Topic")) {
            let policies = subject.template.resources("AWS::SNS::TopicPolicy").into_values();
            let policies = policies.map(|policy| &policy["Properties"]);
            let mut statements = policies
                .filter(|policy| texts(&policy["Topics"]).contains(&topic))
                .flat_map(|policy| items(&policy["PolicyDocument"]["Statement"]))
                .peekable();
            let exists = statements.peek().is_some();
            let exact = statements.all(|it| {
                it["Effect"] == "Allow"
                    && it["Action"] == "sns:Publish"
                    && it["Principal"] == json!({ "Service": "events.amazonaws.com" })
                    && text(&it["Resource"]) == topic
                    && texts(&it["Condition"]["ArnEquals"]["aws:SourceArn"])
                        == [format!("{id}.Arn")]
            });
            violations.check(
                exists && exact,
                id,
                format!("is not the only one that may publish to {topic}"),
            );
        }
    }
    violations
}

pub fn work_queues_have_dead_letter_queues(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for mapping in subject.mappings().values() {
        let (queue, function) = (queue_of(mapping), function_of(mapping));
        if subject.is(queue, "AWS::SQS::Queue") && function != "RecordFailureFunction" {
            let redrive = &subject.template.properties(queue)["RedrivePolicy"];
            let dead_letters = resource_of_arn(&redrive["deadLetterTargetArn"]);
            violations.check(
                subject.is(dead_letters, "AWS::SQS::Queue")
                    && between(&redrive["maxReceiveCount"], 3, 10),
                queue,
                "has no dead-letter queue after 3 to 10 receives",
            );
        }
    }
    violations
}

pub fn queues_retain_messages(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, queue) in subject.template.resources("AWS::SQS::Queue") {
        let retention = &queue["Properties"]["MessageRetentionPeriod"];
        violations.check(
            *retention == json!(MAX_RETENTION_SECONDS),
            id,
            "keeps messages for less than 14 days",
        );
    }
    violations
}

pub fn visibility_timeouts_are_long_enough(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for mapping in subject.mappings().values() {
        let (queue, function) = (queue_of(mapping), function_of(mapping));
        if subject.is(queue, "AWS::SQS::Queue") {
            let visibility = subject.template.properties(queue)["VisibilityTimeout"].as_i64();
            let min = 6 * subject.timeout(function);
            violations.check(
                visibility.is_some_and(|seconds| seconds >= min),
                queue,
                format!(
                    "has a visibility timeout below {min} s, six times the timeout of {function}"
                ),
            );
        }
    }
    violations
}

pub fn mappings_use_partial_batch_responses(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, mapping) in subject.mappings() {
        let partial = mapping["FunctionResponseTypes"] == json!(["ReportBatchItemFailures"]);
        violations.check(partial, id, "does not use partial batch responses");
    }
    violations
}

pub fn streams_have_retry_limits(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, mapping) in subject.stream_mappings() {
        violations.check(
            between(&mapping["MaximumRetryAttempts"], 1, 10_000),
            id,
            "has no retry limit: a record that can't be processed blocks its shard",
        );
        // Half of the shortest retention of a stream's records.
        violations.check(
            between(&mapping["MaximumRecordAgeInSeconds"], 60, 43_200),
            id,
            "has no maximum record age of at most half a day: the stream may drop the record first",
        );
        let bisects = mapping["BisectBatchOnFunctionError"] == true;
        violations.check(bisects, id, "does not bisect a failed batch");
    }
    violations
}

pub fn streams_have_a_failure_bucket(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, mapping) in subject.stream_mappings() {
        let bucket = resource_of_arn(&mapping["DestinationConfig"]["OnFailure"]["Destination"]);
        let exists = subject.is(bucket, "AWS::S3::Bucket");
        violations.check(exists, id, "has no bucket for records that it gives up on");
        let notifications = &subject.template.properties(bucket)["NotificationConfiguration"];
        let queue = resource_of_arn(&notifications["QueueConfigurations"][0]["Queue"]);
        violations.check(
            !exists || queue == "FailureFiles",
            bucket,
            "does not notify the queue FailureFiles of new files",
        );
        let filter = &notifications["QueueConfigurations"][0]["Filter"]["S3Key"]["Rules"][0];
        violations.check(
            !exists || text(&filter["Name"]) == "prefix" && text(&filter["Value"]) == "aws/lambda/",
            bucket,
            "does not limit its notifications to the prefix aws/lambda/, the only files that record-failure may read",
        );
        let function = function_of(mapping);
        let mut statements = items(&subject.template.properties(function)["Policies"])
            .flat_map(|policy| items(&policy["Statement"]));
        let files = format!("${{{bucket}.Arn}}/aws/lambda/*");
        let allowed = statements.any(|it| {
            texts(&it["Action"]).contains(&"s3:PutObject")
                && texts(&it["Resource"]).contains(&files.as_str())
        });
        violations.check(!exists || allowed, function, format!("may not write to {bucket}"));
    }
    violations
}

pub fn streams_are_read_from_the_oldest_record(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, mapping) in subject.stream_mappings() {
        let oldest = mapping["StartingPosition"] == "TRIM_HORIZON";
        violations.check(
            oldest,
            id,
            "skips records that were written before the mapping was created",
        );
    }
    violations
}

/// Checks that check-consumers expects exactly the mappings of the templates.
pub fn mappings_are_checked(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
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
        violations.check(
            expected.remove(&format!("{function} {kind} {name}")).is_some(),
            id,
            "is not expected by check-consumers: it is missing in contracts::names::CONSUMERS",
        );
    }
    for (consumer, function) in expected {
        violations.check(false, function, format!("{consumer}: no template has this mapping"));
    }
    violations
}

/// Checks that `EVENT_CONSUMERS` has exactly the functions that get Fieldstation's own events.
pub fn event_consumers_are_declared(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    let name = |function: &str| kebab(function.trim_end_matches("Function"));
    let is_own = |source: &Value| {
        [text(source), text(&source["prefix"])].iter().any(|it| it.starts_with("fieldstation."))
    };
    let mut found = Vec::new();
    for (id, function) in subject.functions() {
        for (_, event) in members(&function["Events"]) {
            let sources = items(&event["Properties"]["Pattern"]["source"]);
            if event["Type"] == "EventBridgeRule" && sources.into_iter().any(is_own) {
                found.push((name(id), EventSource::Bus));
            }
        }
    }
    for (_, mapping) in subject.mappings() {
        if text(&mapping["EventSourceArn"]) == "EventsStream.Arn" {
            found.push((name(function_of(mapping)), EventSource::Stream));
        }
    }
    for (function, source) in &found {
        let declared = event_consumer(function).is_some_and(|it| it.source == *source);
        let what =
            format!("gets events from the {}: EVENT_CONSUMERS does not say so", source.name());
        violations.check(declared, function, what);
    }
    for consumer in EVENT_CONSUMERS {
        let exists = found.contains(&(consumer.function.to_owned(), consumer.source));
        violations.check(exists, consumer.function, "gets no events, but is in EVENT_CONSUMERS");
    }
    violations
}

pub fn events_in_order(subject: &Subject) -> Violations {
    let mut violations = Violations::default();
    for (id, mapping) in subject.stream_mappings() {
        if text(&mapping["EventSourceArn"]) == "EventsTable.StreamArn" {
            let one = mapping["ParallelizationFactor"] == 1;
            violations.check(one, id, "processes one entity's events concurrently");
        }
    }
    violations
}
