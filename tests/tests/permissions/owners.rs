//! The table of owners: the maximum permissions of each service's functions. A grant on another service's resource has
//! a reason. The table is written by hand, so that a change of a template alone can't add a permission.

use std::sync::LazyLock;

use contracts::{
    names::{SITE_ONBOARDING, SITE_TEARDOWN},
    saga::STEPS,
};
use serde_json::Value;
use testkit::template::machines;

/// The actions that a service may be granted on a resource. The service owns the resource if there is no reason.
#[derive(Clone, Copy, Debug)]
pub struct AllowedGrant {
    pub service: &'static str,
    /// The resource, exactly as [`crate::grants::Grant::resource_name`] returns it. A `*` is literally in the template.
    pub resource: &'static str,
    pub actions: &'static [&'static str],
    /// The reason for a grant on a resource of another service or of all services. Empty for the service's own
    /// resource.
    pub reason: &'static str,
}

const fn own(
    service: &'static str,
    resource: &'static str,
    actions: &'static [&'static str],
) -> AllowedGrant {
    AllowedGrant { service, resource, actions, reason: "" }
}

const fn other(
    service: &'static str,
    resource: &'static str,
    actions: &'static [&'static str],
    reason: &'static str,
) -> AllowedGrant {
    AllowedGrant { service, resource, actions, reason }
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
const READ_EXECUTION: &[&str] = &["states:DescribeExecution", "states:GetExecutionHistory"];
/// The permissions with which Lambda consumes a queue, using the function's role.
const CONSUME: &[&str] = &["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes"];
/// As `CONSUME`, for a queue to which the service also sends: billing sends a command again with a delay during an
/// outage, and telemetry puts records on hold.
const CONSUME_AND_RESEND: &[&str] =
    &["sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:GetQueueAttributes", SEND];
/// The permissions with which Lambda reads a Kinesis stream.
const READ_STREAM: &[&str] = &[
    "kinesis:DescribeStream",
    "kinesis:DescribeStreamSummary",
    "kinesis:GetRecords",
    "kinesis:GetShardIterator",
    "kinesis:ListShards",
];

const COMPLETE_TASK: &[&str] =
    &["states:SendTaskHeartbeat", "states:SendTaskSuccess", "states:SendTaskFailure"];

const LIMITED: &str =
    "the functions behind the API take tokens from the buckets of the rate limits";
const AUDITED: &str =
    "each change of a site or a sensor and each deletion of a site is an entry of the audit trail";
const OUTBOX: &str = "each service writes its events and its rows in one transaction";
const STEP: &str = "a step of the saga";
const RECORDED: &str = "each service maps its own failure queue to record-failure";
const GIVEN_UP: &str = "Lambda stores batches whose retries are exhausted there";
const LIST_STREAMS: &str =
    "Lambda requires it; the action supports no narrower resource, and returns names only";
const CHECKED: &str =
    "check-consumers reports event source mappings that do not run, and their backlog";
const TASK_RESULT: &str = "sends the result of the step to the saga";
const PROOF: &str = "a command runs only if the execution that it names has sent it";
const LOG_GROUP: &str =
    "Step Functions requires it for its log group, and supports no narrower resource";
const MANAGED_RULE: &str = "Step Functions has a managed rule for the end of nested executions";

/// The whole table: the entries of `BY_HAND`, and the calls of the saga's steps and undos.
pub static OWNERS: LazyLock<Vec<AllowedGrant>> = LazyLock::new(|| {
    let machines = machines();
    let calls = STEPS.iter().flat_map(|step| {
        [(SITE_ONBOARDING, step.name), (SITE_TEARDOWN, step.undo)]
            .map(|(machine, state)| call(state, &machines[machine]["States"][state]))
    });
    BY_HAND.iter().copied().chain(calls).collect()
});

/// Returns the permission that a state of the saga needs: it invokes the function of the same name, or sends a command
/// to that function's queue.
fn call(name: &str, state: &Value) -> AllowedGrant {
    if state["Arguments"]["QueueUrl"].is_null() {
        other("onboarding", format!("{name}Function").leak(), &[INVOKE], STEP)
    } else {
        other("onboarding", format!("{name}Queue").leak(), &[SEND], STEP)
    }
}

const BY_HAND: &[AllowedGrant] = &[
    // sites
    own("sites", "SitesTable", &[GET, PUT, QUERY]),
    own("sites", "SitesTable/index/byOperator", &[QUERY]),
    own("sites", "SitesFailures", &[SEND]),
    other("sites", "EventsTable", &[PUT], OUTBOX),
    other("sites", "AuditTable", &[PUT], AUDITED),
    other("sites", "LimitsTable", &[UPDATE], LIMITED),
    other("sites", "SiteTeardown", &[START], "DELETE of an active site starts its teardown"),
    // onboarding
    own("onboarding", "SiteOnboarding", &[START, "states:ListExecutions"]),
    own("onboarding", "SiteTeardown", &[START, "states:ListExecutions"]),
    own("onboarding", "executions of SiteOnboarding", READ_EXECUTION),
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
    own(
        "inventory",
        "InventoryTable/stream",
        &["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
    ),
    own("inventory", "InventoryFailures", &[SEND]),
    other("inventory", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("inventory", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other("inventory", "*", &["dynamodb:ListStreams"], LIST_STREAMS),
    other("inventory", "EventsTable", &[PUT], OUTBOX),
    // devices
    own("devices", "DevicesTable", &[GET, PUT]),
    other("devices", "EventsTable", &[PUT], OUTBOX),
    other("devices", "AuditTable", &[PUT], AUDITED),
    other("devices", "LimitsTable", &[UPDATE], LIMITED),
    other(
        "devices",
        "ReadingsTable",
        &[GET],
        "update-sensor reads the site of a sensor in the register",
    ),
    // billing
    own("billing", "BillingTable", &[GET, PUT, UPDATE, DELETE, "dynamodb:Scan"]),
    own("billing", "BillingFailures", &[SEND]),
    own("billing", "StripeSecret", &["secretsmanager:GetSecretValue"]),
    own("billing", "InitializeSubscriptionQueue", CONSUME_AND_RESEND),
    own("billing", "CancelSubscriptionQueue", CONSUME_AND_RESEND),
    other("billing", "EventsTable", &[PUT], OUTBOX),
    other("billing", "SiteOnboarding", COMPLETE_TASK, TASK_RESULT),
    other("billing", "SiteTeardown", COMPLETE_TASK, TASK_RESULT),
    other("billing", "executions of SiteOnboarding", &["states:DescribeExecution"], PROOF),
    other("billing", "executions of SiteTeardown", &["states:DescribeExecution"], PROOF),
    // alerting
    own("alerting", "AlertingTable", &[GET, PUT]),
    own("alerting", "AlertingFailures", &[SEND]),
    other("alerting", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("alerting", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other("alerting", "EventsTable", &[PUT], OUTBOX),
    other(
        "alerting",
        "ReadingsStream",
        READ_STREAM,
        "detect-breaches evaluates readings when they arrive",
    ),
    // network
    own("network", "NetworkTable", &[GET, UPDATE, QUERY, BATCH_GET]),
    own("network", "NetworkTable", &["dynamodb:BatchWriteItem", "dynamodb:Scan"]),
    own("network", "NetworkFailures", &[SEND]),
    other("network", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("network", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other("network", "EventsTable", &[QUERY], "watch-network reads missing events from the log"),
    other("network", "EventsStream", READ_STREAM, "watch-network counts every event"),
    other("network", "LimitsTable", &[UPDATE], LIMITED),
    // telemetry
    own("telemetry", "ReadingsTable", &[GET, PUT, UPDATE, QUERY, BATCH_GET]),
    own("telemetry", "RefusalsTable", &[UPDATE]),
    own("telemetry", "ReadingsStream", READ_STREAM),
    own("telemetry", "ReadingsStream", &["kinesis:PutRecords"]),
    own("telemetry", "ReadingsOnHold", CONSUME_AND_RESEND),
    own("telemetry", "TelemetryFailures", &[SEND]),
    other("telemetry", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("telemetry", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other("telemetry", "EventsTable", &[PUT], OUTBOX),
    other("telemetry", "LimitsTable", &[UPDATE], LIMITED),
    own("telemetry", "PagingSecret", &["secretsmanager:GetSecretValue"]),
    // operators
    own("operators", "OperatorsTable", &[GET, PUT, UPDATE]),
    own("operators", "OperatorsTable/index/byCreation", &[QUERY]),
    own("operators", "KeysTable", &[GET, PUT, UPDATE]),
    own("operators", "AuditTable", &[PUT, QUERY]),
    own("operators", "LimitsTable", &[UPDATE]),
    own("operators", "KeysTable/index/byOperator", &[QUERY]),
    own("operators", "FirstAdministratorSecret", &["secretsmanager:GetSecretValue"]),
    // events
    own("events", "EventsTable", &[BATCH_GET, GET, PUT, QUERY, UPDATE]),
    own("events", "EventsTable/index/byCorrelation", &[QUERY]),
    own("events", "EventsTable/index/byTypeAndTime", &[QUERY]),
    own("events", "EventsTable/index/unpublished", &[QUERY]),
    own("events", "EventGuardsTable", &[GET, PUT]),
    other("events", "LimitsTable", &[UPDATE], LIMITED),
    own(
        "events",
        "EventsTable/stream",
        &["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
    ),
    own("events", "EventBus", &["events:PutEvents"]),
    own("events", "EventsStream", &["kinesis:PutRecords"]),
    own("events", "EventsFailures", &[SEND]),
    other("events", "FailuresBucket", &["s3:ListBucket"], GIVEN_UP),
    other("events", "FailuresBucket/aws/lambda/*", &["s3:PutObject"], GIVEN_UP),
    other("events", "*", &["dynamodb:ListStreams"], LIST_STREAMS),
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
