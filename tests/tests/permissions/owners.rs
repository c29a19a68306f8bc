//! The table of owners: the most that the functions of a service may do. A grant on another service's resource
//! has a reason. The table is written by hand, so that a change of a template alone can't add a permission.

use std::sync::LazyLock;

use contracts::{
    names::{SITE_ONBOARDING, SITE_TEARDOWN},
    saga::STEPS,
};
use serde_json::Value;
use testkit::template::machines;

/// Actions that a service may be granted on a resource. The service owns the resource if there is no reason.
#[derive(Clone, Copy, Debug)]
pub struct May {
    pub service: &'static str,
    /// The resource, exactly as [`crate::grants::Grant::on`] returns it. A `*` is literally in the template.
    pub resource: &'static str,
    pub actions: &'static [&'static str],
    /// The reason for a grant on a resource of another service or of all services.
    pub why: &'static str,
}

const fn own(
    service: &'static str,
    resource: &'static str,
    actions: &'static [&'static str],
) -> May {
    May { service, resource, actions, why: "" }
}

const fn other(
    service: &'static str,
    resource: &'static str,
    actions: &'static [&'static str],
    why: &'static str,
) -> May {
    May { service, resource, actions, why }
}

const GET: &str = "dynamodb:GetItem";
const PUT: &str = "dynamodb:PutItem";
const UPDATE: &str = "dynamodb:UpdateItem";
const DELETE: &str = "dynamodb:DeleteItem";
const QUERY: &str = "dynamodb:Query";
const BATCH_GET: &str = "dynamodb:BatchGetItem";
const START: &str = "states:StartExecution";
const INVOKE: &str = "lambda:InvokeFunction";
const SEND: &str = "sqs:SendMessage";
const LOOK_AT_EXECUTION: &[&str] = &["states:DescribeExecution", "states:GetExecutionHistory"];
/// The permissions with which Lambda consumes a queue, using the function's role.
const CONSUME: &[&str] = &["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"];
/// As `CONSUME`, for a command queue: a command that meets an outage is sent to its queue again with a delay.
const CONSUME_AND_PUT_BACK: &[&str] =
    &["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", SEND];
/// The permissions with which Lambda reads the readings stream.
const READ_STREAM: &[&str] = &[
    "kinesis:DescribeStream",
    "kinesis:DescribeStreamSummary",
    "kinesis:GetRecords",
    "kinesis:GetShardIterator",
    "kinesis:ListShards",
];

const ANSWER_TASK: &[&str] =
    &["states:SendTaskHeartbeat", "states:SendTaskSuccess", "states:SendTaskFailure"];

const OUTBOX: &str = "each service's events commit with its rows, in one transaction";
const STEP: &str = "a step of the saga";
const RECORDED: &str = "each service maps its own failure queue to record-failure";
const GIVEN_UP: &str = "Lambda writes the batches there that the function failed on for good";
const CHECKED: &str =
    "check-consumers reports mappings that do not run, and what waits behind them";
const TELLS: &str = "tells the saga how the step ended";
const PROOF: &str = "a command is only run if the execution that it names sent it";
const LOG_GROUP: &str =
    "Step Functions demands it for its log group, and knows no narrower resource";
const MANAGED_RULE: &str =
    "Step Functions keeps a rule by which it hears of the nested execution's end";

/// The whole table: the entries of `BY_HAND`, and the calls of the saga's steps and undos.
pub static OWNERS: LazyLock<Vec<May>> = LazyLock::new(|| {
    let machines = machines();
    let calls = STEPS.iter().flat_map(|step| {
        [(SITE_ONBOARDING, step.name), (SITE_TEARDOWN, step.undo)]
            .map(|(machine, state)| call(state, &machines[machine]["States"][state]))
    });
    BY_HAND.iter().copied().chain(calls).collect()
});

/// Returns the permission that a state of the saga needs: it calls the function of its name, or sends a command
/// to that function's queue.
fn call(name: &str, state: &Value) -> May {
    if state["Arguments"]["QueueUrl"].is_null() {
        other("onboarding", format!("{name}Function").leak(), &[INVOKE], STEP)
    } else {
        other("onboarding", format!("{name}Queue").leak(), &[SEND], STEP)
    }
}

const BY_HAND: &[May] = &[
    // sites
    own("sites", "SitesTable", &[GET, PUT, QUERY]),
    own("sites", "SitesTable/index/byStatus", &[QUERY, "dynamodb:Scan"]),
    own("sites", "SitesFailures", &[SEND]),
    other("sites", "EventsTable", &[PUT], OUTBOX),
    other("sites", "SiteTeardown", &[START], "a live site that is deleted is torn down"),
    // onboarding
    own("onboarding", "SiteOnboarding", &[START, "states:ListExecutions"]),
    own("onboarding", "SiteTeardown", &[START, "states:ListExecutions"]),
    own("onboarding", "executions of SiteOnboarding", LOOK_AT_EXECUTION),
    own(
        "onboarding",
        "executions of SiteTeardown",
        &["states:DescribeExecution", "states:GetExecutionHistory", "states:StopExecution"],
    ),
    own("onboarding", "OnboardingFailures", &[SEND]),
    other(
        "onboarding",
        "rule StepFunctionsGetEventsForStepFunctionsExecutionRule",
        &["events:PutTargets", "events:PutRule", "events:DescribeRule"],
        MANAGED_RULE,
    ),
    other(
        "onboarding",
        "*",
        &[
            "logs:CreateLogDelivery",
            "logs:GetLogDelivery",
            "logs:UpdateLogDelivery",
            "logs:DeleteLogDelivery",
            "logs:ListLogDeliveries",
            "logs:PutResourcePolicy",
            "logs:DescribeResourcePolicies",
            "logs:DescribeLogGroups",
        ],
        LOG_GROUP,
    ),
    // inventory
    own("inventory", "InventoryTable", &[GET, PUT, UPDATE]),
    own("inventory", "InventoryFailures", &[SEND]),
    other("inventory", "EventsTable", &[PUT], OUTBOX),
    // devices
    own("devices", "DevicesTable", &[GET, PUT]),
    other("devices", "EventsTable", &[PUT], OUTBOX),
    // billing
    own("billing", "BillingTable", &[GET, PUT, UPDATE, DELETE, "dynamodb:Scan"]),
    own("billing", "BillingFailures", &[SEND]),
    own("billing", "StripeSecret", &["secretsmanager:GetSecretValue"]),
    own("billing", "InitializeSubscriptionQueue", CONSUME_AND_PUT_BACK),
    own("billing", "CancelSubscriptionQueue", CONSUME_AND_PUT_BACK),
    other("billing", "EventsTable", &[PUT], OUTBOX),
    other("billing", "SiteOnboarding", ANSWER_TASK, TELLS),
    other("billing", "SiteTeardown", ANSWER_TASK, TELLS),
    other("billing", "executions of SiteOnboarding", &["states:DescribeExecution"], PROOF),
    other("billing", "executions of SiteTeardown", &["states:DescribeExecution"], PROOF),
    // alerting
    own("alerting", "AlertingTable", &[GET, PUT]),
    other("alerting", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("alerting", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other("alerting", "EventsTable", &[PUT], OUTBOX),
    other("alerting", "ReadingsStream", READ_STREAM, "alerts come of readings as they arrive"),
    // telemetry
    own("telemetry", "ReadingsTable", &[GET, PUT, UPDATE, QUERY, BATCH_GET]),
    own("telemetry", "RefusalsTable", &[UPDATE]),
    own("telemetry", "ReadingsStream", READ_STREAM),
    own("telemetry", "ReadingsStream", &["kinesis:PutRecords"]),
    own("telemetry", "TelemetryFailures", &[SEND]),
    other("telemetry", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("telemetry", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    own("telemetry", "PagingSecret", &["secretsmanager:GetSecretValue"]),
    // events
    own("events", "EventsTable", &[BATCH_GET, QUERY, UPDATE]),
    own("events", "EventsTable/index/unpublished", &[QUERY]),
    own(
        "events",
        "EventsTable/stream",
        &["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
    ),
    own("events", "EventBus", &["events:PutEvents"]),
    own("events", "EventsFailures", &[SEND]),
    other("events", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("events", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other(
        "events",
        "*",
        &["dynamodb:ListStreams"],
        "Lambda asks for it; listing knows no narrower resource, and shows names only",
    ),
    // failures
    own("failures", "FailuresTable", &[UPDATE]),
    own("failures", "FailuresTable/index/byStatus", &[QUERY]),
    own("failures", "FailuresBucket", &["s3:ListBucket"]),
    own("failures", "FailuresBucket/aws/lambda/*", &["s3:GetObject"]),
    own("failures", "FailuresBucket/payloads/*", &["s3:PutObject"]),
    own("failures", "FailureFiles", CONSUME),
    own("failures", "FailuresFailures", &[SEND]),
    other("failures", "queues *-failures", CONSUME, RECORDED),
    other("failures", "queues *", &["sqs:GetQueueAttributes"], CHECKED),
    other("failures", "*", &["lambda:ListEventSourceMappings"], CHECKED),
];
