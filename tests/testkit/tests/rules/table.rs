//! The table of rules: what must hold, why, and edits that break each rule.

use crate::{
    access, data, failing, first_use, functions, sagas, services, steps,
    subject::{
        Edit::{self, DeleteFile, Remove, Replace, Set},
        Subject, Violations,
    },
    supply, versions,
};

/// A rule.
pub struct Rule {
    /// What must hold, as a sentence.
    pub name: &'static str,
    /// What would happen otherwise, or why it matters.
    pub why: &'static str,
    pub check: fn(&Subject) -> Violations,
    /// The exceptions and their reasons. An exception is the name that a violation is about. A trailing `*` matches
    /// any rest.
    pub except: &'static [(&'static str, &'static str)],
    /// Edits that break the rule, and the name that the violation must be about.
    pub breaks: &'static [(Edit, &'static str)],
}

/// The rules, grouped by what they protect.
pub const RULES: &[(&str, &[Rule])] = &[
    ("Failures are never dropped", FAILING),
    ("Every saga ends, and no undo is skipped", SAGAS),
    ("Functions are configured alike", FUNCTIONS),
    ("One stack per service", SERVICES),
    ("What is deployed takes effect", VERSIONS),
    ("Least privilege", ACCESS),
    ("Stored data is safe", DATA),
    ("Dependencies and workflows are pinned and checked", SUPPLY),
    ("First use reports what is missing", FIRST_USE),
];

#[rustfmt::skip]
const FAILING: &[Rule] = &[
    Rule {
        name: "An asynchronously invoked function has a failure queue and a retry limit",
        why: "Lambda drops an event after the last retry",
        check: failing::asynchronous_functions_have_a_failure_queue,
        except: &[],
        breaks: &[
            (Remove("template/Resources/ImportSiteFunction/Properties/EventInvokeConfig/DestinationConfig"), "ImportSiteFunction"),
            (Remove("template/Resources/CheckSagasFunction/Properties/EventInvokeConfig"), "CheckSagasFunction"),
            (Set("template/Resources/ProjectSiteFunction/Properties/EventInvokeConfig/DestinationConfig/OnFailure/Destination", "\"NoQueue.Arn\""), "ProjectSiteFunction"),
            (Set("template/Resources/SiteTeardownFailed/Properties/Targets/0/Arn", "\"CloseSiteFunction.Alias\""), "CloseSiteFunction"),
        ],
    },
    Rule {
        name: "A target of an EventBridge rule or schedule has a dead-letter queue and a retry policy",
        why: "EventBridge drops events that it can't deliver",
        check: failing::targets_have_dead_letter_queues,
        except: &[],
        breaks: &[
            (Remove("template/Resources/ReceiveKitsFunction/Properties/Events/Delivered/Properties/DeadLetterConfig"), "ReceiveKitsFunction"),
            (Remove("template/Resources/SweepEventsFunction/Properties/Events/EveryMinute/Properties/RetryPolicy"), "SweepEventsFunction"),
            (Remove("template/Resources/SiteTeardownFailed/Properties/Targets/0/DeadLetterConfig"), "SiteTeardownFailed"),
            (Set("template/Resources/Extra", r#"{"Type": "AWS::Scheduler::Schedule", "Properties": {"Target": {}}}"#), "Extra"),
        ],
    },
    Rule {
        name: "EventBridge may send to the dead-letter queue of each rule, for that rule only",
        why: "without a queue policy it can't send to the queue, and reports no error",
        check: failing::dead_letters_may_be_sent,
        except: &[],
        breaks: &[
            (Remove("template/Resources/SitesFailuresPolicy"), "ImportSiteFunction"),
            (Set("template/Resources/OnboardingFailuresPolicy/Properties/PolicyDocument/Statement/0/Condition/ArnEquals/aws:SourceArn", "\"RecoverOnboardingFunctionOnboardingEnded.Arn\""), "RecoverOnboardingFunction"),
        ],
    },
    Rule {
        name: "EventBridge may publish to the topic of a rule, for that rule only",
        why: "without a topic policy each event becomes a dead letter; with a wider one other rules could send false events",
        check: failing::topics_take_events_of_their_rules_only,
        except: &[],
        breaks: &[
            (Remove("template/Resources/StockTopicPolicy"), "StockNotifications"),
            (Remove("template/Resources/StockTopicPolicy/Properties/PolicyDocument/Statement/0/Condition"), "StockNotifications"),
            (Set("template/Resources/StockTopicPolicy/Properties/PolicyDocument/Statement/0/Principal", "\"*\""), "StockNotifications"),
        ],
    },
    Rule {
        name: "A work queue has a dead-letter queue",
        why: "a message that crashes its function would be retried for 14 days and then expire",
        check: failing::work_queues_have_dead_letter_queues,
        except: &[],
        breaks: &[
            (Remove("template/Resources/InitializeSubscriptionQueue/Properties/RedrivePolicy"), "InitializeSubscriptionQueue"),
            (Set("template/Resources/CancelSubscriptionQueue/Properties/RedrivePolicy/maxReceiveCount", "1"), "CancelSubscriptionQueue"),
        ],
    },
    Rule {
        name: "A queue keeps messages for 14 days",
        why: "an engineer on call needs time to repair the cause",
        check: failing::queues_retain_messages,
        except: &[],
        breaks: &[(Remove("template/Resources/FailureFiles/Properties/MessageRetentionPeriod"), "FailureFiles")],
    },
    Rule {
        name: "A queue's visibility timeout is at least six times the function's timeout",
        why: "a message could be processed twice at the same time, and use up its receives",
        check: failing::visibility_timeouts_are_long_enough,
        except: &[],
        breaks: &[
            (Set("template/Resources/InitializeSubscriptionQueue/Properties/VisibilityTimeout", "119"), "InitializeSubscriptionQueue"),
            (Set("template/Resources/RecordFailureFunction/Properties/Timeout", "31"), "TelemetryFailures"),
        ],
    },
    Rule {
        name: "An event source mapping uses partial batch responses",
        why: "one bad item would cause all items of its batch to be retried and finally to be given up",
        check: failing::mappings_use_partial_batch_responses,
        except: &[],
        breaks: &[(Remove("template/Resources/PublishEventsMapping/Properties/FunctionResponseTypes"), "PublishEventsMapping")],
    },
    Rule {
        name: "A stream's consumer has a retry limit and a maximum record age of at most half a day, and bisects a failed batch",
        why: "a record that can't be processed would block its shard until the records behind it expire",
        check: failing::streams_have_retry_limits,
        except: &[],
        breaks: &[
            (Remove("template/Resources/StoreReadingsMapping/Properties/MaximumRetryAttempts"), "StoreReadingsMapping"),
            (Set("template/Resources/DetectBreachesMapping/Properties/MaximumRecordAgeInSeconds", "-1"), "DetectBreachesMapping"),
            (Set("template/Resources/PublishEventsMapping/Properties/BisectBatchOnFunctionError", "false"), "PublishEventsMapping"),
        ],
    },
    Rule {
        name: "Records that a stream's consumer gives up on go to a bucket, which notifies record-failure of these files only",
        why: "the records would be dropped or remain unnoticed; a queue would not get their payload; record-failure can't read other files",
        check: failing::streams_have_a_failure_bucket,
        except: &[],
        breaks: &[
            (Remove("template/Resources/StoreReadingsMapping/Properties/DestinationConfig"), "StoreReadingsMapping"),
            (Remove("template/Resources/FailuresBucket/Properties/NotificationConfiguration"), "FailuresBucket"),
            (Remove("template/Resources/FailuresBucket/Properties/NotificationConfiguration/QueueConfigurations/0/Filter"), "FailuresBucket"),
            (Set("template/Resources/PublishEventsFunction/Properties/Policies", "[]"), "PublishEventsFunction"),
        ],
    },
    Rule {
        name: "A stream is read from its oldest record",
        why: "records that are written while the consumer is being created would be skipped",
        check: failing::streams_are_read_from_the_oldest_record,
        except: &[],
        breaks: &[(Set("template/Resources/StoreReadingsMapping/Properties/StartingPosition", "\"LATEST\""), "StoreReadingsMapping")],
    },
    Rule {
        name: "check-consumers checks every event source mapping",
        why: "a disabled mapping does not report itself: messages pile up in its queue or stream until they expire",
        check: failing::mappings_are_checked,
        except: &[],
        breaks: &[
            (Set("template/Resources/ExtraMapping", r#"{"Type": "AWS::Lambda::EventSourceMapping", "Properties": {"EventSourceArn": "ReadingsStream.Arn"}}"#), "ExtraMapping"),
            (Remove("template/Resources/StoreReadingsMapping"), "store-readings"),
            (Set("template/Resources/SitesFailuresMapping/Properties/EventSourceArn", "\"InventoryFailures.Arn\""), "SitesFailuresMapping"),
        ],
    },
    Rule {
        name: "contracts::consumers lists the functions that get Fieldstation's events",
        why: "fieldctl would not show how far a consumer is behind",
        check: failing::event_consumers_are_declared,
        except: &[],
        breaks: &[
            (Remove("template/Resources/WatchNetworkMapping"), "watch-network"),
            (Remove("template/Resources/ProjectSiteFunction/Properties/Events"), "project-site"),
            (Set("template/Resources/ImportSiteFunction/Properties/Events/Requested/Properties/Pattern/source", r#"["fieldstation.sites"]"#), "import-site"),
        ],
    },
    Rule {
        name: "Each shard of the event log's stream is read by one invocation at a time",
        why: "events of one entity would be published concurrently, which causes more duplicates",
        check: failing::events_in_order,
        except: &[],
        breaks: &[(Set("template/Resources/PublishEventsMapping/Properties/ParallelizationFactor", "2"), "PublishEventsMapping")],
    },
];

#[rustfmt::skip]
const SAGAS: &[Rule] = &[
    Rule {
        name: "Every Task state catches all errors",
        why: "the execution would fail without undoing the completed steps",
        check: sagas::every_task_catches_all_errors,
        except: &[],
        breaks: &[
            (Remove("site-onboarding/States/ConfigureAlerting/Catch"), "ConfigureAlerting"),
            (Set("site-teardown/States/ReleaseKits/Catch/0/ErrorEquals", r#"["Lambda.ServiceException"]"#), "ReleaseKits"),
            (Remove("site-onboarding/States/Compensate/Catch"), "Compensate"),
            (Set("site-onboarding/States/Side", r#"{"Type": "Parallel", "Branches": [{"States": {"InBranch": {"Type": "Task"}}}]}"#), "InBranch"),
        ],
    },
    Rule {
        name: "A failed step starts the teardown, passes it the step's name and waits for its end",
        why: "a site would remain partly onboarded",
        check: sagas::failed_steps_are_undone,
        except: &[],
        breaks: &[
            (Set("site-onboarding/States/ReserveKits/Catch/0/Next", "\"OnboardingFailed\""), "ReserveKits"),
            (Set("site-onboarding/States/ActivateSite/Catch/0/Assign/failure/step", "\"Somewhere\""), "ActivateSite"),
            (Set("site-onboarding/States/Compensate/Resource", "\"arn:aws:states:::states:startExecution\""), "Compensate"),
        ],
    },
    Rule {
        name: "A failed undo is recorded, and the next undo runs",
        why: "one failing undo would prevent all later ones",
        check: sagas::failed_undos_do_not_stop_others,
        except: &[],
        breaks: &[
            (Set("site-teardown/States/RemoveAlerting/Catch/0/Next", "\"CompensationIncomplete\""), "RemoveAlerting"),
            (Remove("site-teardown/States/CloseSite/Catch/0/Assign/undoFailures"), "CloseSite"),
        ],
    },
    Rule {
        name: "Every step has an undo, and the undos run in reverse order",
        why: "the effect of a new step would not be undone",
        check: sagas::every_step_has_its_undo,
        except: &[],
        breaks: &[
            (Set("site-onboarding/States/ConfigureAlerting/Next", "\"Compensate\""), "Compensate"),
            (Set("site-teardown/States/CancelSubscription/Next", "\"ReleaseKits\""), "ProvisionSensors"),
        ],
    },
    Rule {
        name: "Each state of a saga calls the function of its step",
        why: "contracts::saga::STEPS would name a function that does not run",
        check: steps::states_call_their_functions,
        except: &[],
        breaks: &[
            (Set("site-onboarding/States/ReserveKits/Arguments/FunctionName", "\"${ProvisionSensorsFunctionArn}\""), "ReserveKits"),
            (Set("site-teardown/States/CancelSubscription/Arguments/QueueUrl", "\"${InitializeSubscriptionQueueUrl}\""), "CancelSubscription"),
            (Remove("template/Resources/RemoveAlertingFunction"), "RemoveAlerting"),
        ],
    },
    Rule {
        name: "Teardowns and undos get the input that contracts::saga::TeardownInput describes",
        why: "an undo could not read its input, so its step would not be undone",
        check: steps::teardowns_get_the_declared_input,
        except: &[],
        breaks: &[
            (Remove("site-onboarding/States/Compensate/Arguments/Input/failure"), "Compensate"),
            (Set("site-onboarding/States/Compensate/Arguments/Input/reason", "\"\""), "Compensate"),
            (Remove("site-teardown/States/ReleaseKits/Arguments/Payload/siteId"), "ReleaseKits"),
            (Set("site-teardown/States/CancelSubscription/Arguments/MessageBody/command/why", "\"\""), "CancelSubscription"),
            (Set("site-teardown/States/CompensationIncomplete/Cause", "\"'teardownInput': {'siteId': 1}\""), "site-teardown"),
        ],
    },
    Rule {
        name: "project-site receives the events of all steps, changes of sensors, and no others",
        why: "GET /sites/{siteId} would not show the status of a step, or a changed sensor",
        check: steps::project_site_gets_the_events,
        except: &[],
        breaks: &[
            (Remove("template/Resources/ProjectSiteFunction/Properties/Events/StepDone/Properties/Pattern/detail-type/0"), "ProjectSiteFunction"),
            (Set("template/Resources/ProjectSiteFunction/Properties/Events/StepDone/Properties/Pattern/detail-type/0", "\"SiteCreated\""), "ProjectSiteFunction"),
        ],
    },
    Rule {
        name: "Every Task state is retried at most eight times, with exponential backoff and jitter",
        why: "without retries, a short outage would fail sagas; without jitter, simultaneous retries could cause another outage",
        check: sagas::retries_are_bounded,
        except: &[],
        breaks: &[
            (Remove("site-onboarding/States/ReserveKits/Retry"), "ReserveKits"),
            (Remove("site-onboarding/States/ProvisionSensors/Retry/0/MaxAttempts"), "ProvisionSensors"),
            (Remove("site-teardown/States/CloseSite/Retry/1/JitterStrategy"), "CloseSite"),
            (Remove("site-teardown/States/RemoveAlerting/Retry/1/MaxDelaySeconds"), "RemoveAlerting"),
        ],
    },
    Rule {
        name: "Every Task state has a timeout that is longer than its function's timeout",
        why: "the saga would wait a year for a lost response; a function would continue after its caller timed out",
        check: sagas::tasks_time_out,
        except: &[],
        breaks: &[
            (Remove("site-teardown/States/CancelSubscription/TimeoutSeconds"), "CancelSubscription"),
            (Set("template/Resources/ActivateSiteFunction/Properties/Timeout", "15"), "ActivateSite"),
        ],
    },
    Rule {
        name: "A state machine has a timeout",
        why: "an execution must end even if a state has no timeout",
        check: sagas::executions_time_out,
        except: &[("site-teardown", "each of its states has a timeout; a timeout of the whole execution would skip undos")],
        breaks: &[(Remove("site-onboarding/TimeoutSeconds"), "site-onboarding")],
    },
    Rule {
        name: "No timeout is shorter than the longest possible duration of what it limits",
        why: "a shorter timeout would interrupt an undo",
        check: sagas::timeouts_cover_the_longest_duration,
        except: &[],
        breaks: &[
            (Set("site-onboarding/States/Compensate/TimeoutSeconds", "779054"), "Compensate"),
            (Set("site-teardown/States/CancelSubscription/Retry/1/MaxAttempts", "9"), "Compensate"),
            (Set("site-onboarding/TimeoutSeconds", "784157"), "site-onboarding"),
        ],
    },
    Rule {
        name: "Every placeholder of a state machine has a substitution, and every substitution is used",
        why: "a state would call a function named `${...}`",
        check: sagas::placeholders_are_substituted,
        except: &[],
        breaks: &[
            (Remove("template/Resources/SiteOnboarding/Properties/DefinitionSubstitutions/SiteTeardownArn"), "SiteOnboarding"),
            (Set("template/Resources/SiteTeardown/Properties/DefinitionSubstitutions/Unused", "\"x\""), "SiteTeardown"),
        ],
    },
    Rule {
        name: "State machines have the standard type, are traced, and log errors without inputs",
        why: "an express execution may run twice; an input contains the id of a payment method",
        check: sagas::state_machines_are_logged_and_traced,
        except: &[],
        breaks: &[
            (Set("template/Resources/SiteOnboarding/Properties/Type", "\"EXPRESS\""), "SiteOnboarding"),
            (Set("template/Resources/SiteTeardown/Properties/Logging/IncludeExecutionData", "true"), "SiteTeardown"),
            (Set("template/Resources/SiteTeardown/Properties/Logging/Level", "\"OFF\""), "SiteTeardown"),
            (Remove("template/Resources/SiteOnboarding/Properties/Tracing"), "SiteOnboarding"),
        ],
    },
];

#[rustfmt::skip]
const FUNCTIONS: &[Rule] = &[
    Rule {
        name: "Each function is built from the binary of its name, and each binary has a function",
        why: "a function would run the code of another one, or a binary would be built and not deployed",
        check: functions::functions_match_their_binaries,
        except: &[],
        breaks: &[
            (Set("template/Resources/ReleaseKitsFunction/Metadata/BuildProperties/Binary", "\"reserve-kits\""), "ReleaseKitsFunction"),
            (DeleteFile("functions/sites/src/bin/get-site.rs"), "GetSiteFunction"),
            (Remove("template/Resources/SweepEventsFunction"), "functions/events/src/bin/sweep-events.rs"),
        ],
    },
    Rule {
        name: "All functions have the same runtime and architecture, and 128 to 512 MB of memory",
        why: "they are built once for one architecture; memory is billed by the millisecond",
        check: functions::functions_share_one_runtime,
        except: &[],
        breaks: &[
            (Set("template/Resources/GetSiteFunction/Properties/Architectures", r#"["x86_64"]"#), "GetSiteFunction"),
            (Set("template/Resources/StoreReadingsFunction/Properties/MemorySize", "3008"), "StoreReadingsFunction"),
        ],
    },
    Rule {
        name: "A function's environment variables are exactly those that its binary reads",
        why: "the function would fail at its start, or have settings without effect",
        check: functions::variables_equal_those_that_are_read,
        except: &[
            ("InitializeSubscriptionFunction CIRCUIT_FAILURES", "the default is five failures; no deployment needed another value"),
            ("CancelSubscriptionFunction CIRCUIT_FAILURES", "the same"),
        ],
        breaks: &[
            (Remove("template/Resources/CloseSiteFunction/Properties/Environment/Variables/EVENTS_TABLE"), "CloseSiteFunction EVENTS_TABLE"),
            (Set("template/Resources/GetSiteFunction/Properties/Environment/Variables/EVENTS_TABLE", "\"EventsTable\""), "GetSiteFunction EVENTS_TABLE"),
            (Replace("functions/telemetry/src/paging.rs", "env(\"PAGING_SECRET_ARN\")", "env(\"PAGING_KEY_ARN\")"), "functions/telemetry/src/paging.rs"),
        ],
    },
    Rule {
        name: "A function is called only by its alias `live`",
        why: "a gradual deployment shifts the alias; a caller that bypasses it gets the new version at once",
        check: functions::functions_are_called_by_alias,
        except: &[],
        breaks: &[
            (Set("template/Resources/StoreReadingsMapping/Properties/FunctionName", "\"StoreReadingsFunction\""), "StoreReadingsMapping"),
            (Set("template/Resources/SiteTeardown/Properties/DefinitionSubstitutions/CloseSiteFunctionArn", "\"CloseSiteFunction.Arn\""), "SiteTeardown"),
            (Set("template/Resources/GetSiteFunction/Properties/AutoPublishAlias", "\"latest\""), "GetSiteFunction"),
        ],
    },
    Rule {
        name: "A function logs JSON to its own log group, and every log group has a retention",
        why: "Lambda creates a missing log group without a retention, so its logs would be kept and billed for ever",
        check: functions::log_groups_have_a_retention,
        except: &[],
        breaks: &[
            (Remove("template/Resources/GetSiteFunction/Properties/LoggingConfig"), "GetSiteFunction"),
            (Set("template/Resources/CloseSiteFunction/Properties/LoggingConfig/LogGroup", "\"GetSiteLogs\""), "CloseSiteFunction"),
            (Remove("template/Resources/ApiAccessLogs/Properties/RetentionInDays"), "ApiAccessLogs"),
            (Remove("template/Globals/Function/LoggingConfig/LogFormat"), "Globals"),
        ],
    },
    Rule {
        name: "Functions and the API are traced",
        why: "the cause of a slow call could not be found",
        check: functions::functions_and_the_api_are_traced,
        except: &[],
        breaks: &[
            (Set("template/Resources/GetSiteFunction/Properties/Tracing", "\"PassThrough\""), "GetSiteFunction"),
            (Remove("template/Resources/Api/Properties/TracingEnabled"), "Api"),
        ],
    },
    Rule {
        name: "Functions, alarms, schedules, secrets, parameters and outputs have a description",
        why: "the console shows it to the engineer on call",
        check: functions::resources_have_descriptions,
        except: &[],
        breaks: &[
            (Remove("template/Resources/CloseSiteFunction/Properties/Description"), "CloseSiteFunction"),
            (Remove("template/Resources/StuckSagasAlarm/Properties/AlarmDescription"), "StuckSagasAlarm"),
            (Remove("template/Resources/CheckSagasFunction/Properties/Events/EveryFiveMinutes/Properties/Description"), "CheckSagasFunction"),
            (Remove("template/Resources/PagingSecret/Properties/Description"), "PagingSecret"),
            (Remove("template/Parameters/StageName/Description"), "StageName"),
            (Remove("template/Outputs/ApiId/Description"), "ApiId"),
        ],
    },
    Rule {
        name: "A function behind the API has a timeout below API Gateway's 29 seconds",
        why: "the caller would get an error although the call succeeds",
        check: functions::api_timeouts_are_below_29_seconds,
        except: &[],
        breaks: &[(Set("template/Resources/AcceptReadingsFunction/Properties/Timeout", "30"), "AcceptReadingsFunction")],
    },
    Rule {
        name: "The number of concurrent invocations that call the payment provider is limited",
        why: "a full queue would exceed the provider's rate limit",
        check: functions::provider_calls_are_limited,
        except: &[("ReconcileSubscriptionsFunction", "it runs once an hour and makes one call at a time")],
        breaks: &[
            (Remove("template/Resources/CancelSubscriptionMapping/Properties/ScalingConfig"), "CancelSubscriptionFunction"),
            (Remove("template/Resources/CancelSubscriptionMapping"), "CancelSubscriptionFunction"),
        ],
    },
    Rule {
        name: "Every function has a sample event",
        why: "a new contributor runs a function with `sam local invoke` or `make invoke`",
        check: functions::functions_have_sample_events,
        except: &[],
        breaks: &[
            (DeleteFile("tests/events/close-site.json"), "CloseSiteFunction"),
            (Replace("tests/events/open-site.json", "", "{}"), "tests/events/open-site.json"),
        ],
    },
    Rule {
        name: "Every function is in the README's row of its service",
        why: "new contributors look there first",
        check: functions::listed_in_the_readme,
        except: &[],
        breaks: &[
            (Replace("README.md", ", project-site, update-site |", ", update-site |"), "ProjectSiteFunction"),
            (Replace("README.md", " functions. This takes", " programs. This takes"), "README.md"),
        ],
    },
    Rule {
        name: "Functions, tables, sagas and failure queues are on the dashboard",
        why: "a problem of a resource that is not on the dashboard would go unnoticed",
        check: functions::listed_on_the_dashboard,
        except: &[],
        breaks: &[
            (Set("template/Resources/Dashboard/Properties/DashboardBody", "\"{\""), "Dashboard"),
            (Set("template/Resources/Dashboard/Properties/DashboardBody", "\"{}\""), "SitesTable"),
            (Set("template/Resources/Dashboard/Properties/DashboardBody", "\"{}\""), "FailureFiles"),
            (Set("template/Resources/GetSiteFunction/Properties/FunctionName", "\"get-site\""), "GetSiteFunction"),
        ],
    },
    Rule {
        name: "Every function is named in a test of its service or of the deployed stack",
        why: "an untested function may fail at its first use",
        check: functions::functions_are_tested,
        except: &[],
        breaks: &[
            (Set("template/Resources/OpenSiteFunction", r#"{"Type": "AWS::Serverless::Function", "Properties": {}}"#), "OpenSiteFunction"),
            (DeleteFile("functions/telemetry/tests/revisions.rs"), "GetRevisionsFunction"),
        ],
    },
];

#[rustfmt::skip]
const SERVICES: &[Rule] = &[
    Rule {
        name: "The root template nests every service with all its parameters, and has no other resources",
        why: "a service would be missing after `sam deploy`, or run with default parameters",
        check: services::services_are_nested_with_all_parameters,
        except: &[],
        breaks: &[
            (Remove("root/Resources/Billing"), "billing"),
            (Remove("root/Resources/Telemetry/Properties/Parameters/ReadingsShards"), "telemetry"),
            (Set("root/Resources/Sites/Properties/Parameters/Environment", "\"Environment\""), "sites"),
            (Set("root/Resources/Extra", "{}"), "root"),
        ],
    },
    Rule {
        name: "A service is deployed after the services whose resources it names",
        why: "a mapping, rule or permission that names a missing resource is refused",
        check: services::deployed_after_their_dependencies,
        except: &[],
        breaks: &[
            (Remove("root/Resources/Alerting/DependsOn/2"), "alerting"),
            (Remove("root/Resources/Gateway/DependsOn/8"), "gateway"),
            (Set("failures/Resources/OnCallTopic/Properties/Extra", "\"arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:${Environment}-sites-failures\""), "failures"),
            (Set("devices/Resources/DevicesTable/Properties/Extra", "\"arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/${Environment}-inventory\""), "devices"),
        ],
    },
    Rule {
        name: "Parameters, conditions, globals and gradual deployment are identical in all templates",
        why: "a setting would have different meanings in different services",
        check: services::shared_sections_are_identical,
        except: &[],
        breaks: &[
            (Set("billing/Globals/Function/Timeout", "11"), "billing"),
            (Set("sites/Parameters/LogRetentionDays/Default", "7"), "sites"),
            (Set("events/Conditions/ProtectTables", "[\"DeletionProtection\", \"yes\"]"), "events"),
            (Remove("telemetry/Resources/CanaryDeployment"), "telemetry"),
        ],
    },
    Rule {
        name: "A function is in the template of the service that has its binary",
        why: "a team must be able to deploy its service alone",
        check: services::functions_are_in_their_services_template,
        except: &[],
        breaks: &[(Set("billing/Resources/GetSiteFunction", r#"{"Type": "AWS::Serverless::Function"}"#), "GetSiteFunction")],
    },
    Rule {
        name: "Each service has an entry in samconfig.toml",
        why: "`make deploy SERVICE=...` builds and deploys with it",
        check: services::services_have_samconfig_entries,
        except: &[],
        breaks: &[(Replace("samconfig.toml", "[inventory.deploy.parameters]", "[stock.deploy.parameters]"), "inventory")],
    },
];

#[rustfmt::skip]
const VERSIONS: &[Rule] = &[
    Rule {
        name: "A function's VersionDescription contains its parameters within 256 characters, and a replaced version is retained",
        why: "SAM hashes a parameter's name and not its value, so a changed value would never reach the alias",
        check: versions::version_descriptions_contain_the_parameters,
        except: &[],
        breaks: &[
            (Remove("template/Resources/GetSiteFunction/Properties/VersionDescription"), "GetSiteFunction"),
            (Set("template/Resources/CheckSagasFunction/Properties/VersionDescription", "\"${Architecture} ${LogLevel}\""), "CheckSagasFunction"),
            (Set("template/Resources/GetSiteFunction/Properties/Environment/Variables/STAGE", "\"StageName\""), "GetSiteFunction"),
            (Set("template/Parameters/StripePrices/MaxLength", "200"), "CancelSubscriptionFunction"),
            (Remove("template/Parameters/StripeApiBase/MaxLength"), "ReconcileSubscriptionsFunction"),
            (Remove("template/Resources/PublishEventsFunction/UpdateReplacePolicy"), "PublishEventsFunction"),
        ],
    },
    Rule {
        name: "An API whose definition refers to parameters has AlwaysDeploy",
        why: "SAM hashes a parameter's name and not its value, so the stage would keep the previous definition",
        check: versions::stages_follow_their_definition,
        except: &[],
        breaks: &[(Set("template/Resources/Api/Properties/DefinitionBody/info/title", "\"${StageName}\""), "Api")],
    },
    Rule {
        name: "A function that sends to its own queue has RecursiveLoop Allow, and no other function has it",
        why: "Lambda ends a recursive loop after 16 calls: a command would become a dead letter; unintended loops should end",
        check: versions::recursive_loops_are_intended,
        except: &[
            ("InitializeSubscriptionFunction", "during an outage of the provider it sends commands back to its queue with a delay, for as long as the command's state waits"),
            ("CancelSubscriptionFunction", "the same"),
            ("StoreHeldReadingsFunction RecursiveLoop", "it holds a record at most ten times; if it ever did more, the loop should end"),
        ],
        breaks: &[
            (Set("template/Resources/StoreReadingsFunction/Properties/RecursiveLoop", "\"Allow\""), "StoreReadingsFunction"),
            (Remove("template/Resources/CancelSubscriptionFunction/Properties/RecursiveLoop"), "CancelSubscriptionFunction RecursiveLoop"),
        ],
    },
    Rule {
        name: "Exactly the functions that the API, a stream or a queue invokes are deployed gradually",
        why: "five minutes with 5 % of the calls prove nothing for a function that is called once a minute, and each gradual deployment uses part of CodeDeploy's rate limit",
        check: versions::gradual_deployment_where_it_helps,
        except: &[],
        breaks: &[
            (Remove("template/Resources/AcceptReadingsFunction/Properties/DeploymentPreference"), "AcceptReadingsFunction"),
            (Set("template/Resources/CheckSagasFunction/Properties/DeploymentPreference", r#"{"Enabled": "GradualDeployment", "Type": "CanaryDeployment"}"#), "CheckSagasFunction"),
            (Set("template/Resources/StoreReadingsFunction/Properties/DeploymentPreference/Type", "\"AllAtOnce\""), "StoreReadingsFunction"),
        ],
    },
];

#[rustfmt::skip]
const ACCESS: &[Rule] = &[
    Rule {
        name: "Every route of the API requires a key or a token, which authorise-caller checks",
        why: "anyone could register sites and cause charges",
        check: access::every_route_authenticates_its_caller,
        except: &[],
        breaks: &[
            (Remove("template/Resources/Api/Properties/DefinitionBody/paths/~1readings/post/security"), "POST /readings"),
            (Set("template/Resources/Api/Properties/DefinitionBody/paths/~1sites/put", "{}"), "PUT /sites"),
            (Set("template/Resources/Api/Properties/DefinitionBody/paths/~1sites/x-amazon-apigateway-any-method/x-amazon-apigateway-integration/responses/default/statusCode", "\"200\""), "X-AMAZON-APIGATEWAY-ANY-METHOD /sites"),
            (Remove("template/Resources/Api/Properties/DefinitionBody/components/securitySchemes/Caller/x-amazon-apigateway-authtype"), "Api"),
            (Set("template/Resources/Api/Properties/DefinitionBody/components/securitySchemes/Caller/x-amazon-apigateway-authorizer/authorizerResultTtlInSeconds", "300"), "Api"),
            (Set("template/Resources/Api/Properties/DefinitionBody/components/securitySchemes/Caller/x-amazon-apigateway-authorizer/authorizerUri", "\"arn:functions/${GetSiteFunction.Alias}/invocations\""), "Api"),
        ],
    },
    Rule {
        name: "A route requires its path parameters and limits the size of its body",
        why: "the functions check bodies in order to name the wrong field, so they must also limit them",
        check: access::requests_are_checked,
        except: &[],
        breaks: &[
            (Set("template/Resources/Api/Properties/DefinitionBody/paths/~1sites~1{siteId}/parameters", "[]"), "GET /sites/{siteId}"),
            (Replace("functions/sites/src/create_site.rs", "http::read(", "read("), "POST /sites"),
        ],
    },
    Rule {
        name: "API calls are throttled, and one operator can't use up a throttle",
        why: "every call of a faulty client would be billed, and a lower throttle would refuse the other operators",
        check: access::calls_are_throttled,
        except: &[],
        breaks: &[
            (Remove("template/Resources/Api/Properties/MethodSettings/0"), "* /*"),
            (Set("template/Resources/Api/Properties/MethodSettings/0/ThrottlingRateLimit", "999"), "* /*"),
            (Set("template/Resources/Api/Properties/MethodSettings/1/ThrottlingRateLimit", "999"), "POST /~1readings"),
            (Set("template/Resources/Api/Properties/MethodSettings/1/ThrottlingRateLimit", "10000"), "POST /~1readings"),
            (Set("template/Resources/Api/Properties/MethodSettings/2/ThrottlingRateLimit", "10"), "POST /~1sites"),
            (Set("template/Resources/Api/Properties/MethodSettings/3/ThrottlingBurstLimit", "10000"), "DELETE /~1sites~1{siteId}"),
        ],
    },
    Rule {
        name: "Calls that start sagas take a token of their operator and one of all operators",
        why: "a saga costs far more than a call, and one operator could delay the others' onboardings",
        check: access::sagas_are_limited,
        except: &[],
        breaks: &[
            (Replace("functions/sites/src/bin/create-site.rs", ".of_sagas()", ""), "POST /sites"),
            (Replace("functions/sites/src/bin/decommission-site.rs", ".of_sagas()", ""), "DELETE /sites/{siteId}"),
        ],
    },
    Rule {
        name: "The API logs the caller's operator, scope and IP address, and no text of the caller",
        why: "abuse could not be traced, or a key that a caller puts into the path by mistake would be in the log",
        check: access::calls_are_logged,
        except: &[],
        breaks: &[
            (Remove("template/Resources/Api/Properties/AccessLogSetting"), "Api"),
            (Set("template/Resources/Api/Properties/AccessLogSetting/Format", "\"$context.requestId\""), "Api"),
            (Set("template/Resources/Api/Properties/AccessLogSetting/Format", "\"$context.authorizer.operatorId $context.authorizer.scope $context.identity.sourceIp $context.path\""), "Api"),
            (Set("template/Resources/Api/Properties/AccessLogSetting/Format", "\"$context.authorizer.operatorId $context.authorizer.scope $context.identity.sourceIp $context.identity.userAgent\""), "Api"),
        ],
    },
    Rule {
        name: "No cache may keep API Gateway's own responses",
        why: "a cache could answer 401, 404 or 405 after the cause is gone",
        check: access::own_responses_are_not_kept,
        except: &[],
        breaks: &[
            (Remove("template/Resources/Api/Properties/DefinitionBody/x-amazon-apigateway-gateway-responses/ACCESS_DENIED/responseParameters/gatewayresponse.header.Cache-Control"), "ACCESS_DENIED"),
            (Set("template/Resources/Api/Properties/DefinitionBody/x-amazon-apigateway-gateway-responses/QUOTA_EXCEEDED", r#"{"statusCode": 429}"#), "QUOTA_EXCEEDED"),
            (Remove("template/Resources/Api/Properties/DefinitionBody/paths/~1sites/x-amazon-apigateway-any-method/x-amazon-apigateway-integration/responses/default/responseParameters/method.response.header.Cache-Control"), "X-AMAZON-APIGATEWAY-ANY-METHOD /sites"),
            (Set("template/Resources/Api/Properties/DefinitionBody/paths/~1{proxy+}/x-amazon-apigateway-any-method/x-amazon-apigateway-integration/responses/default/responseParameters/method.response.header.Cache-Control", "\"'max-age=60'\""), "X-AMAZON-APIGATEWAY-ANY-METHOD /{proxy+}"),
        ],
    },
    Rule {
        name: "API Gateway may invoke each route's function, and for that one route only",
        why: "another API of the account or another route could call a function and bypass its checks",
        check: access::invocations_are_limited_to_one_route,
        except: &[],
        breaks: &[
            (Set("template/Resources/CreateSitePermission/Properties/SourceArn", "\"arn:${Api}/${StageName}/*/*\""), "CreateSitePermission"),
            (Remove("template/Resources/CreateSitePermission/Properties/SourceArn"), "CreateSitePermission"),
            (Remove("template/Resources/GetReadingsPermission"), "GET /sensors/{sensorId}/readings"),
            (Remove("template/Resources/AuthoriseCallerPermission"), "Api"),
            (Set("template/Resources/GetReadingsPermission/Properties/SourceArn", "\"arn:${Api}/authorizers/*\""), "GetReadingsPermission"),
        ],
    },
    Rule {
        name: "Each function and each saga has its own role, with its policy in the template",
        why: "managed policies and SAM policy templates grant more than the template shows",
        check: access::roles_are_defined_in_the_template,
        except: &[("ApiGatewayLogRole", "AWS's managed policy for API Gateway's one role per account; it may only write logs")],
        breaks: &[
            (Set("template/Resources/GetSiteFunction/Properties/Policies", r#"["AmazonDynamoDBFullAccess"]"#), "GetSiteFunction"),
            (Set("template/Resources/GetSiteFunction/Properties/Role", "\"Shared.Arn\""), "GetSiteFunction"),
            (Set("template/Resources/SiteTeardown/Properties/Policies", r#"["AWSLambda_FullAccess"]"#), "SiteTeardown"),
        ],
    },
    Rule {
        name: "Policies name each action",
        why: "a wildcard also grants actions that AWS adds later",
        check: access::policies_name_each_action,
        except: &[],
        breaks: &[
            (Set("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Action", "\"dynamodb:*\""), "GetSiteFunction"),
            (Set("template/Resources/SiteTeardown/Properties/Policies/0/Statement/0/Action", r#"["lambda:Invoke*"]"#), "SiteTeardown"),
            (Set("template/Resources/SiteTeardown/Properties/Policies/0/Statement", r#"{"Effect": "Allow", "Action": "*", "Resource": "*"}"#), "SiteTeardown"),
            (Remove("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Action"), "GetSiteFunction"),
        ],
    },
    Rule {
        name: "Policies name each resource, and a wildcard may only follow the name of a Fieldstation resource",
        why: "an attacker who controls a function can reach everything that its role allows",
        check: access::policies_name_each_resource,
        except: &[
            ("SiteOnboarding logs:*", "Step Functions requires these actions for its log group, and they have no narrower resource"),
            ("SiteTeardown logs:*", "the same"),
            ("PublishEventsFunction dynamodb:ListStreams", "Lambda requires it, and it has no narrower resource; it returns only names"),
            ("WatchStockFunction dynamodb:ListStreams", "the same"),
            ("RecordFailureFunction sqs:*", "each service maps its own failure queue to it, so the policy can only use the pattern of their names: <environment>-*-failures"),
            ("CheckConsumersFunction lambda:ListEventSourceMappings", "it has no narrower resource; it returns only the states of mappings"),
            ("CheckConsumersFunction sqs:GetQueueAttributes", "the queues belong to all services; it counts messages and reads none"),
        ],
        breaks: &[
            (Set("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Resource", "\"*\""), "GetSiteFunction dynamodb:Query"),
            (Set("template/Resources/RecordFailureFunction/Properties/Policies/0/Statement/1/Resource", "\"arn:aws:s3:::*\""), "RecordFailureFunction s3:PutObject"),
            (Set("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Resource", r#"[["ProtectTables", "SitesTable.Arn", "*"]]"#), "GetSiteFunction dynamodb:Query"),
            (Set("template/Resources/SiteTeardown/Properties/Policies/0/Statement/0/Resource", "\"arn:${AWS::Partition}:lambda:*\""), "SiteTeardown lambda:InvokeFunction"),
        ],
    },
    Rule {
        name: "No function may scan a table",
        why: "the cost of a scan grows with the table, and a scan returns all data at once",
        check: access::no_table_is_scanned,
        except: &[
            ("ReconcileSubscriptionsFunction BillingTable.Arn", "once an hour it compares all of billing's rows, including tombstones, with the provider; an index would cost a write for each row and would be read completely as well"),
            ("WatchNetworkFunction NetworkTable.Arn", "after a rebuild, which an engineer on call starts with `fieldctl consumers replay`, it deletes the rows of the earlier generation in small pages; an index for that would cost a write for each cursor"),
        ],
        breaks: &[(Set("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Action", "\"dynamodb:Scan\""), "GetSiteFunction SitesTable.Arn")],
    },
    Rule {
        name: "Functions may add entries to the audit trail and read them, but not change or delete them",
        why: "an attacker who controls a function could remove the traces",
        check: access::the_audit_trail_is_only_added_to,
        except: &[],
        breaks: &[
            (Set("template/Resources/RevokeKeyFunction/Properties/Policies/0/Statement/1/Action", "\"dynamodb:DeleteItem\""), "RevokeKeyFunction AuditTable.Arn"),
            (Set("template/Resources/DecommissionSiteFunction/Properties/Policies/0/Statement/2/Action", r#"["dynamodb:PutItem", "dynamodb:UpdateItem"]"#), "DecommissionSiteFunction AuditTable.Arn"),
        ],
    },
    Rule {
        name: "A queue policy allows only named services, for rules and buckets of this account",
        why: "a rule of another account could flood the failure queues or forge failures",
        check: access::queue_policies_name_their_senders,
        except: &[],
        breaks: &[
            (Remove("template/Resources/SitesFailuresPolicy/Properties/PolicyDocument/Statement/0/Condition"), "SitesFailuresPolicy"),
            (Set("template/Resources/FailureFilesPolicy/Properties/PolicyDocument/Statement/0/Principal", "\"*\""), "FailureFilesPolicy"),
        ],
    },
    Rule {
        name: "A command queue denies all senders but its state machine and its function",
        why: "a command cancels or opens a site's subscription",
        check: access::command_queues_deny_other_senders,
        except: &[],
        breaks: &[
            (Remove("template/Resources/CancelSubscriptionQueuePolicy"), "CancelSubscriptionQueue"),
            (Set("template/Resources/InitializeSubscriptionQueuePolicy/Properties/PolicyDocument/Statement/0/Effect", "\"Allow\""), "InitializeSubscriptionQueue"),
            (Set("template/Resources/InitializeSubscriptionQueuePolicy/Properties/PolicyDocument/Statement/0/Principal", r#"{"AWS": "*"}"#), "InitializeSubscriptionQueue"),
            (Set("template/Resources/CancelSubscriptionQueuePolicy/Properties/PolicyDocument/Statement/0/Condition/ArnNotLike/aws:PrincipalArn/0", "\"arn:${AWS::Partition}:iam::${AWS::AccountId}:role/${Environment}/*\""), "CancelSubscriptionQueue"),
            (Set("template/Resources/SiteTeardown/Properties/Policies/0/Statement/1/Resource", "\"InitializeSubscriptionQueue.Arn\""), "SiteTeardown"),
        ],
    },
    Rule {
        name: "EventBridge rules match event types and sources: Fieldstation's sources for its own events, any other source for events of other systems",
        why: "an event of another system could be taken for an event of a step",
        check: access::event_rules_match_known_sources,
        except: &[],
        breaks: &[
            (Remove("template/Resources/StartOnboardingFunction/Properties/Events/SiteCreated/Properties/Pattern/source"), "StartOnboardingFunction"),
            (Set("template/Resources/ImportSiteFunction/Properties/Events/Requested/Properties/Pattern/source", r#"[{"prefix": "fieldstation."}]"#), "ImportSiteFunction"),
            (Set("template/Resources/ProjectSensorsFunction/Properties/Events/SensorsChanged/Properties/Pattern/source", r#"[{"prefix": ""}]"#), "ProjectSensorsFunction"),
            (Remove("template/Resources/SiteTeardownFailed/Properties/EventPattern/detail-type"), "SiteTeardownFailed"),
            (Set("template/Resources/ImportSiteFunction/Properties/Events/Requested/Properties/Pattern/detail-type", r#"["SiteRegistrationRequested", "SiteCreated"]"#), "ImportSiteFunction"),
        ],
    },
    Rule {
        name: "Secrets are generated and stored by Secrets Manager, and functions get only their ARNs",
        why: "parameters and environment variables are visible in the console and in every description of the stack",
        check: access::secrets_are_in_secrets_manager,
        except: &[],
        breaks: &[
            (Set("template/Parameters/StripeSecretKey", r#"{"Type": "String", "NoEcho": true}"#), "StripeSecretKey"),
            (Set("template/Resources/GetReadingsFunction/Properties/Environment/Variables/PAGING_SECRET", "\"x\""), "GetReadingsFunction"),
            (Set("template/Resources/GetReadingsFunction/Properties/Environment/Variables/PAGING", "\"{{resolve:secretsmanager:x}}\""), "GetReadingsFunction"),
            (Set("template/Resources/StripeSecret/Properties/SecretString", "\"sk_live_x\""), "StripeSecret"),
        ],
    },
    Rule {
        name: "Only the functions that publish the event log may put events on the bus or on the stream of all events",
        why: "an event could be published without a committed row; on the stream, it could also be out of order",
        check: access::only_publishers_put_events,
        except: &[],
        breaks: &[
            (Set("template/Resources/ProjectSiteFunction/Properties/Policies/0/Statement/0/Action", "\"events:PutEvents\""), "ProjectSiteFunction"),
            (Set("template/Resources/ProjectSiteFunction/Properties/Policies/0/Statement/0", r#"{"Effect": "Allow", "Action": "kinesis:PutRecords", "Resource": "EventsStream.Arn"}"#), "ProjectSiteFunction"),
            (Set("template/Resources/ProjectSiteFunction/Properties/Policies/0/Statement/0", r#"{"Effect": "Allow", "Action": "kinesis:PutRecord", "Resource": "arn:${AWS::Partition}:kinesis:${AWS::Region}:${AWS::AccountId}:stream/${Environment}-events"}"#), "ProjectSiteFunction"),
        ],
    },
    Rule {
        name: "The bus denies Fieldstation's event sources to all but the functions that publish the event log",
        why: "any principal that may put events on the bus could publish an event without a committed row",
        check: access::event_sources_are_reserved_for_publishers,
        except: &[],
        breaks: &[
            (Remove("template/Resources/EventBusPolicy"), "EventBus"),
            (Set("template/Resources/EventBusPolicy/Properties/Statement/Effect", "\"Allow\""), "EventBus"),
            (Remove("template/Resources/EventBusPolicy/Properties/Statement/Condition/ForAnyValue:StringLike"), "EventBus"),
            (Remove("template/Resources/EventBusPolicy/Properties/Statement/Condition/ArnNotEquals/aws:PrincipalArn/0"), "EventBus"),
            (Set("template/Parameters/GuardEventSources/Default", "\"false\""), "GuardEventSources"),
            (Replace("samconfig.toml", " DeletionProtection=true", " GuardEventSources=false"), "samconfig.toml"),
        ],
    },
];

#[rustfmt::skip]
const DATA: &[Rule] = &[
    Rule {
        name: "A table is retained with its data when its stack is deleted, has point-in-time recovery and can be protected from deletion",
        why: "a wrong deployment or a mistake of an engineer would delete the sites",
        check: data::tables_are_retained_and_recoverable,
        except: &[],
        breaks: &[
            (Remove("template/Resources/SitesTable/DeletionPolicy"), "SitesTable"),
            (Remove("template/Resources/BillingTable/Properties/PointInTimeRecoverySpecification"), "BillingTable"),
            (Remove("template/Resources/FailuresTable/Properties/DeletionProtectionEnabled"), "FailuresTable"),
        ],
    },
    Rule {
        name: "A table has on-demand capacity",
        why: "a fixed capacity would throttle the first load peak",
        check: data::tables_have_on_demand_capacity,
        except: &[],
        breaks: &[(Set("template/Resources/ReadingsTable/Properties/BillingMode", "\"PROVISIONED\""), "ReadingsTable")],
    },
    Rule {
        name: "Tables, queues, streams, buckets and topics are encrypted",
        why: "they contain data of sites, and queues and buckets may contain payloads; the keys of tables and streams are in KMS, so CloudTrail logs their use, and the keys of queues and buckets are free",
        check: data::stored_data_is_encrypted,
        except: &[
            ("OnCallTopic", "CloudWatch can't publish to a topic with the AWS-managed key, and alarms contain no data of a site"),
            ("StockTopic", "EventBridge can't publish to a topic with the AWS-managed key, and the events contain no data of a site"),
        ],
        breaks: &[
            (Remove("template/Resources/EventsTable/Properties/SSESpecification"), "EventsTable"),
            (Remove("template/Resources/CancelSubscriptionQueue/Properties/SqsManagedSseEnabled"), "CancelSubscriptionQueue"),
            (Remove("template/Resources/ReadingsStream/Properties/StreamEncryption"), "ReadingsStream"),
            (Remove("template/Resources/EventsStream/Properties/StreamEncryption"), "EventsStream"),
            (Remove("template/Resources/FailuresBucket/Properties/BucketEncryption"), "FailuresBucket"),
            (Set("template/Resources/Extra", r#"{"Type": "AWS::SNS::Topic", "Properties": {}}"#), "Extra"),
        ],
    },
    Rule {
        name: "A bucket blocks public access, contains only objects of its owner, requires TLS, and is retained when its stack is deleted",
        why: "it contains failed readings, events and registrations",
        check: data::buckets_are_private,
        except: &[],
        breaks: &[
            (Set("template/Resources/FailuresBucket/Properties/PublicAccessBlockConfiguration/BlockPublicPolicy", "false"), "FailuresBucket"),
            (Remove("template/Resources/FailuresBucket/Properties/OwnershipControls"), "FailuresBucket"),
            (Remove("template/Resources/FailuresBucketPolicy"), "FailuresBucket"),
            (Remove("template/Resources/FailuresBucket/DeletionPolicy"), "FailuresBucket"),
        ],
    },
    Rule {
        name: "Resources have their fixed names, and the API's outputs exist",
        why: "`fieldctl`, the tests and other services find resources by them",
        check: data::fixed_names_and_outputs_exist,
        except: &[],
        breaks: &[
            (Remove("template/Outputs/ApiUrl"), "ApiUrl"),
            (Set("template/Resources/EventsTable/Properties/TableName", "\"${Environment}-log\""), "events"),
            (Remove("template/Resources/SitesTable/Properties/TableName"), "sites"),
        ],
    },
    Rule {
        name: "Every parameter is in a group",
        why: "the console would show it at the end under `Other parameters`",
        check: data::parameters_are_grouped,
        except: &[],
        breaks: &[(Set("template/Parameters/Extra", "{}"), "Extra")],
    },
    Rule {
        name: "Production deploys gradually, protects its tables and asks for confirmation before a change",
        why: "the defaults are for test environments",
        check: data::production_settings_are_safe,
        except: &[],
        breaks: &[(Replace("samconfig.toml", " DeletionProtection=true", ""), "samconfig.toml")],
    },
];

#[rustfmt::skip]
const SUPPLY: &[Rule] = &[
    Rule {
        name: "Python packages are pinned by version and hash, and their hashes are checked at installation",
        why: "a compromised package would run in CI, which may deploy",
        check: supply::python_packages_are_pinned,
        except: &[],
        breaks: &[
            (Replace("tools/local/requirements.txt", "aiohttp==", "aiohttp>="), "tools/local/requirements.txt"),
            (Replace(".ci/requirements.txt", " \\\n", "\n"), ".ci/requirements.txt"),
            (Replace("Makefile", " --require-hashes", ""), "Makefile"),
        ],
    },
    Rule {
        name: "Node packages are pinned by hash and installed from their lock file",
        why: "the same",
        check: supply::node_packages_are_pinned,
        except: &[],
        breaks: &[
            (Replace("tools/local/package-lock.json", "\"integrity\": \"sha512-", "\"integrity\": \"sha1-"), "tools/local/package-lock.json"),
            (Replace("Makefile", "npm ci", "npm install"), "Makefile"),
        ],
    },
    Rule {
        name: "Crates are built from Cargo.lock, and cargo-deny checks their licences, sources and advisories",
        why: "a newer version or another source would be used unnoticed",
        check: supply::crates_are_built_from_the_lock_file,
        except: &[],
        breaks: &[
            (Replace(".github/workflows/smoke.yml", " --locked", ""), ".github/workflows/smoke.yml"),
            (Replace("Makefile", "cargo clippy $(CARGO_FLAGS) --workspace", "cargo clippy --workspace"), "Makefile"),
            (Replace("Makefile", "cargo test $(CARGO_FLAGS) $(UNIT_PACKAGES) $(ARGS)", "sudo cargo test $(UNIT_PACKAGES)"), "Makefile"),
            (Replace(".ci/run", "\nmake --no-print-directory deny\n", "\n"), ".ci/run"),
            (Replace(".github/workflows/advisories.yml", "make advisories", "true"), ".github/workflows/advisories.yml"),
            (Replace("Makefile", "check bans licenses sources", "check bans"), "Makefile"),
        ],
    },
    Rule {
        name: "Workflows pin actions to a commit",
        why: "a tag can be moved to another commit",
        check: supply::actions_are_pinned_to_commits,
        except: &[],
        breaks: &[(Replace(".github/workflows/test.yml", "uses: actions/checkout@", "uses: actions/checkout@v5 # "), ".github/workflows/test.yml")],
    },
    Rule {
        name: "Workflows only read the repository, assume roles by OpenID Connect, have timeouts, and run no change from a fork with the repository's permissions",
        why: "an attacker could use a token with write access or a long-lived key",
        check: supply::workflows_have_minimal_permissions,
        except: &[],
        breaks: &[
            (Replace(".github/workflows/test.yml", "permissions:\n  contents: read\n", ""), ".github/workflows/test.yml"),
            (Replace(".github/workflows/build.yml", "contents: read", "contents: write"), ".github/workflows/build.yml"),
            (Replace(".github/workflows/test.yml", "pull_request:", "pull_request_target:"), ".github/workflows/test.yml"),
            (Replace(".github/workflows/advisories.yml", "    timeout-minutes: 15\n", ""), ".github/workflows/advisories.yml"),
            (Replace(".github/workflows/smoke.yml", "role-to-assume: ${{ vars.", "aws-access-key-id: ${{ secrets."), ".github/workflows/smoke.yml"),
            (Replace(".github/workflows/staging.yml", "stack: fieldstation-staging }\n", "stack: fieldstation-staging }\n    secrets: inherit\n"), ".github/workflows/staging.yml"),
        ],
    },
    Rule {
        name: "Releases are built without a cache, and no job that can assume a role restores a cache",
        why: "a run of another branch can write a malicious entry to the cache",
        check: supply::releases_and_deployments_use_no_cache,
        except: &[],
        breaks: &[
            (Replace(".github/workflows/build.yml", "      - run: make setup", "      - uses: Swatinem/rust-cache@779680da715d629ac1d338a641029a2f4372abb5 # v2.8.2\n      - run: make setup"), ".github/workflows/build.yml"),
            (Replace(".github/workflows/smoke.yml", "      - run: cargo build", "      - uses: actions/cache@0057852bfaa89a56745cba8c7296529d2fc39830 # v4.3.0\n      - run: cargo build"), ".github/workflows/smoke.yml"),
            (Replace(".github/workflows/staging.yml", "{ python-version: '3.11' }", "{ python-version: '3.11', cache: pip }"), ".github/workflows/staging.yml"),
        ],
    },
    Rule {
        name: "Production deploys only a build that a push to main of this repository made and that passed staging",
        why: "staging can run on any branch, and a run of a fork has the same workflow file name",
        check: supply::production_deploys_only_main,
        except: &[],
        breaks: &[
            (Replace(".github/workflows/prod.yml", ".head_branch <<<", ".head_sha <<<"), ".github/workflows/prod.yml"),
            (Replace(".github/workflows/prod.yml", "= main ||", "= main || true ||"), ".github/workflows/prod.yml"),
            (Replace(".github/workflows/prod.yml", ".event <<< \"$run\")\" = push", ".event <<< \"$run\")\" != schedule"), ".github/workflows/prod.yml"),
            (Replace(".github/workflows/prod.yml", "= \"$GITHUB_REPOSITORY\"", "!= \"\""), ".github/workflows/prod.yml"),
            (Replace(".github/workflows/prod.yml", "= success", "!= failure"), ".github/workflows/prod.yml"),
            (Replace(".github/workflows/prod.yml", "refs/remotes/origin/main", "HEAD"), ".github/workflows/prod.yml"),
            (Replace(".github/workflows/staging.yml", "branches: [main]", "tags: [main]"), ".github/workflows/staging.yml"),
        ],
    },
    Rule {
        name: "fieldctl, the demo and the data logger print only through a function that escapes control and invisible characters",
        why: "data from outside could control the terminal of the engineer on call",
        check: supply::output_is_escaped,
        except: &[],
        breaks: &[
            (Replace("fieldctl/src/commands/sites.rs", "    screen.line(\"\")?;\n    let steps", "    println!(\"{site}\");\n    let steps"), "fieldctl/src/commands/sites.rs"),
            (Replace("fieldctl/src/main.rs", "output::print_error(&error)", "eprintln!(\"{}\", error.message)"), "fieldctl/src/main.rs"),
            (Replace("fieldctl/src/commands/sites.rs", "Progress::spinner()", "indicatif::ProgressBar::new_spinner()"), "fieldctl/src/commands/sites.rs"),
            (Replace("fieldctl/src/commands.rs", "output::ask(question)?", "io::stderr().write_all(question.as_bytes())?"), "fieldctl/src/commands.rs"),
            (Replace("tests/src/meter.rs", "terminal::print(format_args!(", "println!("), "tests/src/meter.rs"),
            (Replace("tools/demo/src/bin/demo/progress.rs", "set_message(terminal::line(state).into_owned())", "set_message(state.to_owned())"), "tools/demo/src/bin/demo/progress.rs"),
        ],
    },
    Rule {
        name: "The local stack listens on loopback only",
        why: "an emulator does not authenticate its callers",
        check: supply::local_stack_is_local,
        except: &[],
        breaks: &[
            (Replace("tools/local/stack.py", "HOST = \"127.0.0.1\"", "HOST = \"0.0.0.0\""), "tools/local/stack.py"),
            (Replace("tools/local/stack.py", "\"BIND_HOST\": HOST,", ""), "tools/local/stack.py"),
            (Replace("tools/local/stack.py", "\"IOT_MTLS_ENABLED\": \"0\",", ""), "tools/local/stack.py"),
        ],
    },
];

#[rustfmt::skip]
const FIRST_USE: &[Rule] = &[
    Rule {
        name: "make demo asks before it deletes a running local stack",
        why: "the stack may be in use",
        check: first_use::demo_asks_before_deleting_a_stack,
        except: &[],
        breaks: &[(Replace("Makefile", "$(STACK) confirm-reset", "true"), "Makefile")],
    },
    Rule {
        name: "The Makefile's targets name missing prerequisites and show why an installation failed",
        why: "a new contributor could not find the cause",
        check: first_use::missing_prerequisites_are_named,
        except: &[],
        breaks: &[
            (Replace("Makefile", "docker-env: require-docker", "docker-env:"), "Makefile"),
            (Replace("Makefile", "lambda-image: require-docker build-local", "lambda-image: build-local"), "Makefile"),
            (Replace("Makefile", "$(STACK) kits air_temperature", "true air_temperature"), "Makefile"),
            (Replace("Makefile", "$(STACK) api-url)", "true)"), "Makefile"),
            (Replace("Makefile", "npm ci --prefix tools/local --loglevel=error", "npm ci --prefix tools/local --silent"), "Makefile"),
            (Replace("tests/smoke.sh", "KitsOutOfStock", "Nothing"), "tests/smoke.sh"),
        ],
    },
    Rule {
        name: "The documented kinesis put-record works with versions 1 and 2 of the AWS CLI",
        why: "without fileb://, one of the versions would send the base64 text itself",
        check: first_use::documented_commands_work_with_each_aws_cli,
        except: &[],
        breaks: &[(Replace("docs/integrating.md", "--data fileb://bundle.json.gz", "--data \"$(gzip -c bundle.json | base64 -w0)\""), "docs/integrating.md")],
    },
];
