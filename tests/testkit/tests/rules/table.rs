//! The rules: what must hold, why, and how to see each one fail.

use crate::{
    access, data, failing, first_use, functions, sagas, services, steps,
    subject::{
        Edit::{self, NoFile, Text, With, Without},
        Objections, Subject,
    },
    supply, versions,
};

/// One rule.
pub struct Rule {
    /// What must hold, as a sentence.
    pub name: &'static str,
    /// What would happen otherwise.
    pub why: &'static str,
    pub check: fn(&Subject) -> Objections,
    /// What is excepted (the name that an objection is about; a `*` behind stands for anything), and why.
    pub except: &'static [(&'static str, &'static str)],
    /// Edits that break it, and whom it must object to then.
    pub breaks: &'static [(Edit, &'static str)],
}

/// By what they protect.
pub const RULES: &[(&str, &[Rule])] = &[
    ("Nothing that fails is dropped", FAILING),
    ("A saga ends, and no undo is skipped", SAGAS),
    ("Functions are all alike", FUNCTIONS),
    ("One stack per service", SERVICES),
    ("What is deployed takes effect", VERSIONS),
    ("Nobody may do more than needed", ACCESS),
    ("What is kept is kept safely", DATA),
    ("What comes in from outside was looked at", SUPPLY),
    ("First use says what is missing", FIRST_USE),
];

#[rustfmt::skip]
const FAILING: &[Rule] = &[
    Rule {
        name: "An asynchronous function has a failure queue, and finite retries",
        why: "Lambda drops an event after its last try",
        check: failing::called_asynchronously_with_a_destination,
        except: &[],
        breaks: &[
            (Without("template/Resources/ImportSiteFunction/Properties/EventInvokeConfig/DestinationConfig"), "ImportSiteFunction"),
            (Without("template/Resources/CheckSagasFunction/Properties/EventInvokeConfig"), "CheckSagasFunction"),
            (With("template/Resources/ProjectSiteFunction/Properties/EventInvokeConfig/DestinationConfig/OnFailure/Destination", "\"NoQueue.Arn\""), "ProjectSiteFunction"),
            (With("template/Resources/SiteTeardownFailed/Properties/Targets/0/Arn", "\"CloseSiteFunction.Alias\""), "CloseSiteFunction"),
        ],
    },
    Rule {
        name: "A rule's or schedule's target has dead letters, and says how long it tries",
        why: "EventBridge drops what it can't deliver",
        check: failing::targets_with_dead_letters,
        except: &[],
        breaks: &[
            (Without("template/Resources/ReceiveKitsFunction/Properties/Events/Delivered/Properties/DeadLetterConfig"), "ReceiveKitsFunction"),
            (Without("template/Resources/SweepEventsFunction/Properties/Events/EveryMinute/Properties/RetryPolicy"), "SweepEventsFunction"),
            (Without("template/Resources/SiteTeardownFailed/Properties/Targets/0/DeadLetterConfig"), "SiteTeardownFailed"),
            (With("template/Resources/Extra", r#"{"Type": "AWS::Scheduler::Schedule", "Properties": {"Target": {}}}"#), "Extra"),
        ],
    },
    Rule {
        name: "EventBridge may send to each of its dead-letter queues, on behalf of that one rule",
        why: "without a queue policy it fails to, and tells nobody",
        check: failing::dead_letters_that_can_be_sent,
        except: &[],
        breaks: &[
            (Without("template/Resources/SitesFailuresPolicy"), "ImportSiteFunction"),
            (With("template/Resources/OnboardingFailuresPolicy/Properties/PolicyDocument/Statement/0/Condition/ArnEquals/aws:SourceArn", "\"RecoverOnboardingFunctionOnboardingEnded.Arn\""), "RecoverOnboardingFunction"),
        ],
    },
    Rule {
        name: "A queue that carries work has dead letters",
        why: "a message that crashes its function would come back for 14 days, and then be gone",
        check: failing::work_queues_with_dead_letters,
        except: &[],
        breaks: &[
            (Without("template/Resources/InitializeSubscriptionQueue/Properties/RedrivePolicy"), "InitializeSubscriptionQueue"),
            (With("template/Resources/CancelSubscriptionQueue/Properties/RedrivePolicy/maxReceiveCount", "1"), "CancelSubscriptionQueue"),
        ],
    },
    Rule {
        name: "A queue keeps messages for 14 days",
        why: "whoever mends the cause needs the time",
        check: failing::queues_that_keep,
        except: &[],
        breaks: &[(Without("template/Resources/FailureFiles/Properties/MessageRetentionPeriod"), "FailureFiles")],
    },
    Rule {
        name: "A queue hides a message for six times the function's time-out",
        why: "it would be worked on twice at a time, and use up its receives",
        check: failing::queues_that_hide_long_enough,
        except: &[],
        breaks: &[
            (With("template/Resources/InitializeSubscriptionQueue/Properties/VisibilityTimeout", "119"), "InitializeSubscriptionQueue"),
            (With("template/Resources/RecordFailureFunction/Properties/Timeout", "31"), "TelemetryFailures"),
        ],
    },
    Rule {
        name: "A batch is answered item by item",
        why: "one bad item would bring all others back, and in the end give them up",
        check: failing::partial_answers,
        except: &[],
        breaks: &[(Without("template/Resources/PublishEventsMapping/Properties/FunctionResponseTypes"), "PublishEventsMapping")],
    },
    Rule {
        name: "A stream's consumer gives up after finite tries, within half a day, halving the batch",
        why: "a record that can't be worked on would stop its shard until the stream drops what is behind",
        check: failing::streams_that_give_up,
        except: &[],
        breaks: &[
            (Without("template/Resources/StoreReadingsMapping/Properties/MaximumRetryAttempts"), "StoreReadingsMapping"),
            (With("template/Resources/DetectBreachesMapping/Properties/MaximumRecordAgeInSeconds", "-1"), "DetectBreachesMapping"),
            (With("template/Resources/PublishEventsMapping/Properties/BisectBatchOnFunctionError", "false"), "PublishEventsMapping"),
        ],
    },
    Rule {
        name: "What a stream's consumer gives up on is put into a bucket that tells record-failure of it, and of nothing else",
        why: "it would be dropped, or lie there unseen; a queue would get no payload; other files can't be read",
        check: failing::streams_that_set_aside,
        except: &[],
        breaks: &[
            (Without("template/Resources/StoreReadingsMapping/Properties/DestinationConfig"), "StoreReadingsMapping"),
            (Without("template/Resources/FailuresBucket/Properties/NotificationConfiguration"), "FailuresBucket"),
            (Without("template/Resources/FailuresBucket/Properties/NotificationConfiguration/QueueConfigurations/0/Filter"), "FailuresBucket"),
            (With("template/Resources/PublishEventsFunction/Properties/Policies", "[]"), "PublishEventsFunction"),
        ],
    },
    Rule {
        name: "A stream is read from its oldest record",
        why: "what is written while the consumer is being made would be skipped",
        check: failing::streams_from_their_beginning,
        except: &[],
        breaks: &[(With("template/Resources/StoreReadingsMapping/Properties/StartingPosition", "\"LATEST\""), "StoreReadingsMapping")],
    },
    Rule {
        name: "check-consumers checks every event source mapping",
        why: "a mapping that is disabled reports nothing itself: its queue or stream fills until the messages expire",
        check: failing::mappings_that_are_checked,
        except: &[],
        breaks: &[
            (With("template/Resources/ExtraMapping", r#"{"Type": "AWS::Lambda::EventSourceMapping", "Properties": {"EventSourceArn": "ReadingsStream.Arn"}}"#), "ExtraMapping"),
            (Without("template/Resources/StoreReadingsMapping"), "store-readings"),
            (With("template/Resources/SitesFailuresMapping/Properties/EventSourceArn", "\"InventoryFailures.Arn\""), "SitesFailuresMapping"),
        ],
    },
    Rule {
        name: "The event log's stream is read by one function at a time a shard",
        why: "one entity's events would be published side by side, and so repeated more often",
        check: failing::events_in_order,
        except: &[],
        breaks: &[(With("template/Resources/PublishEventsMapping/Properties/ParallelizationFactor", "2"), "PublishEventsMapping")],
    },
];

#[rustfmt::skip]
const SAGAS: &[Rule] = &[
    Rule {
        name: "Every state that calls somebody catches every error",
        why: "the execution would break off, with what it did left behind",
        check: sagas::every_task_catches_everything,
        except: &[],
        breaks: &[
            (Without("site-onboarding/States/ConfigureAlerting/Catch"), "ConfigureAlerting"),
            (With("site-teardown/States/ReleaseKits/Catch/0/ErrorEquals", r#"["Lambda.ServiceException"]"#), "ReleaseKits"),
            (Without("site-onboarding/States/Compensate/Catch"), "Compensate"),
            (With("site-onboarding/States/Side", r#"{"Type": "Parallel", "Branches": [{"States": {"InBranch": {"Type": "Task"}}}]}"#), "InBranch"),
        ],
    },
    Rule {
        name: "A step that fails leads to the undo, which is told the step and is waited for",
        why: "a site would end half onboarded",
        check: sagas::what_fails_forward_is_undone,
        except: &[],
        breaks: &[
            (With("site-onboarding/States/ReserveKits/Catch/0/Next", "\"OnboardingFailed\""), "ReserveKits"),
            (With("site-onboarding/States/ActivateSite/Catch/0/Assign/failure/step", "\"Somewhere\""), "ActivateSite"),
            (With("site-onboarding/States/Compensate/Resource", "\"arn:aws:states:::states:startExecution\""), "Compensate"),
        ],
    },
    Rule {
        name: "An undo that fails is noted, and the next one runs",
        why: "one broken undo would keep all others from running",
        check: sagas::an_undo_that_fails_stops_no_other,
        except: &[],
        breaks: &[
            (With("site-teardown/States/RemoveAlerting/Catch/0/Next", "\"CompensationIncomplete\""), "RemoveAlerting"),
            (Without("site-teardown/States/CloseSite/Catch/0/Assign/undoFailures"), "CloseSite"),
        ],
    },
    Rule {
        name: "Every step has its undo, in reverse order",
        why: "what a new step does would stay",
        check: sagas::every_step_has_its_undo,
        except: &[],
        breaks: &[
            (With("site-onboarding/States/ConfigureAlerting/Next", "\"Compensate\""), "Compensate"),
            (With("site-teardown/States/CancelSubscription/Next", "\"ReleaseKits\""), "ProvisionSensors"),
        ],
    },
    Rule {
        name: "Each state of the sagas calls the function of its step",
        why: "contracts::saga::STEPS would name another function than the one that runs",
        check: steps::states_call_their_functions,
        except: &[],
        breaks: &[
            (With("site-onboarding/States/ReserveKits/Arguments/FunctionName", "\"${ProvisionSensorsFunctionArn}\""), "ReserveKits"),
            (With("site-teardown/States/CancelSubscription/Arguments/QueueUrl", "\"${InitializeSubscriptionQueueUrl}\""), "CancelSubscription"),
            (Without("template/Resources/RemoveAlertingFunction"), "RemoveAlerting"),
        ],
    },
    Rule {
        name: "Teardowns and undos get the input that contracts::saga::TeardownInput describes",
        why: "an undo could not read its input, and what it undoes would stay",
        check: steps::teardowns_get_one_input,
        except: &[],
        breaks: &[
            (Without("site-onboarding/States/Compensate/Arguments/Input/failure"), "Compensate"),
            (With("site-onboarding/States/Compensate/Arguments/Input/reason", "\"\""), "Compensate"),
            (Without("site-teardown/States/ReleaseKits/Arguments/Payload/siteId"), "ReleaseKits"),
            (With("site-teardown/States/CancelSubscription/Arguments/MessageBody/command/why", "\"\""), "CancelSubscription"),
            (With("site-teardown/States/CompensationIncomplete/Cause", "\"'teardownInput': {'siteId': 1}\""), "site-teardown"),
        ],
    },
    Rule {
        name: "project-site gets the events of all steps, and no others",
        why: "GET /sites/{siteId} would not show what became of a step",
        check: steps::project_site_gets_the_events,
        except: &[],
        breaks: &[
            (Without("template/Resources/ProjectSiteFunction/Properties/Events/StepDone/Properties/Pattern/detail-type/0"), "ProjectSiteFunction"),
            (With("template/Resources/ProjectSiteFunction/Properties/Events/StepDone/Properties/Pattern/detail-type/0", "\"SiteCreated\""), "ProjectSiteFunction"),
        ],
    },
    Rule {
        name: "Everything is tried again at most eight times, at growing intervals with jitter",
        why: "a short outage would fail sagas, and their retries in step would bring about the next one",
        check: sagas::retries_are_bounded,
        except: &[],
        breaks: &[
            (Without("site-onboarding/States/ReserveKits/Retry"), "ReserveKits"),
            (Without("site-onboarding/States/ProvisionSensors/Retry/0/MaxAttempts"), "ProvisionSensors"),
            (Without("site-teardown/States/CloseSite/Retry/1/JitterStrategy"), "CloseSite"),
            (Without("site-teardown/States/RemoveAlerting/Retry/1/MaxDelaySeconds"), "RemoveAlerting"),
        ],
    },
    Rule {
        name: "Every state that calls somebody has a time-out, longer than its function's",
        why: "a lost answer would be waited for a year; a function would work on unheard",
        check: sagas::tasks_time_out,
        except: &[],
        breaks: &[
            (Without("site-teardown/States/CancelSubscription/TimeoutSeconds"), "CancelSubscription"),
            (With("template/Resources/ActivateSiteFunction/Properties/Timeout", "15"), "ActivateSite"),
        ],
    },
    Rule {
        name: "An execution has a time-out",
        why: "whatever is forgotten, it ends",
        check: sagas::executions_time_out,
        except: &[("site-teardown", "each of its states bounds itself; a time-out of the whole would leave undos unrun")],
        breaks: &[(Without("site-onboarding/TimeoutSeconds"), "site-onboarding")],
    },
    Rule {
        name: "No time-out is shorter than what it bounds may take at the very worst",
        why: "it would cut an undo off half-way",
        check: sagas::no_time_out_cuts_an_undo_short,
        except: &[],
        breaks: &[
            (With("site-onboarding/States/Compensate/TimeoutSeconds", "779054"), "Compensate"),
            (With("site-teardown/States/CancelSubscription/Retry/1/MaxAttempts", "9"), "Compensate"),
            (With("site-onboarding/TimeoutSeconds", "784157"), "site-onboarding"),
        ],
    },
    Rule {
        name: "Every placeholder of a state machine is filled, and every filling used",
        why: "a state would call a function named `${...}`",
        check: sagas::placeholders_are_filled,
        except: &[],
        breaks: &[
            (Without("template/Resources/SiteOnboarding/Properties/DefinitionSubstitutions/SiteTeardownArn"), "SiteOnboarding"),
            (With("template/Resources/SiteTeardown/Properties/DefinitionSubstitutions/Unused", "\"x\""), "SiteTeardown"),
        ],
    },
    Rule {
        name: "State machines are of the standard kind, traced, and log errors without their inputs",
        why: "an express one may run twice; an input carries a payment method's id",
        check: sagas::machines_are_recorded,
        except: &[],
        breaks: &[
            (With("template/Resources/SiteOnboarding/Properties/Type", "\"EXPRESS\""), "SiteOnboarding"),
            (With("template/Resources/SiteTeardown/Properties/Logging/IncludeExecutionData", "true"), "SiteTeardown"),
            (With("template/Resources/SiteTeardown/Properties/Logging/Level", "\"OFF\""), "SiteTeardown"),
            (Without("template/Resources/SiteOnboarding/Properties/Tracing"), "SiteOnboarding"),
        ],
    },
];

#[rustfmt::skip]
const FUNCTIONS: &[Rule] = &[
    Rule {
        name: "A function is the binary of its name, and a binary is a function",
        why: "one would run another's code, or be built and never deployed",
        check: functions::one_binary_each,
        except: &[],
        breaks: &[
            (With("template/Resources/ReleaseKitsFunction/Metadata/BuildProperties/Binary", "\"reserve-kits\""), "ReleaseKitsFunction"),
            (NoFile("functions/sites/src/bin/get-site.rs"), "GetSiteFunction"),
            (Without("template/Resources/SweepEventsFunction"), "functions/events/src/bin/sweep-events.rs"),
        ],
    },
    Rule {
        name: "All functions have one runtime and processor, and 128 to 512 MB",
        why: "they are built once, for one machine; memory is paid by the millisecond",
        check: functions::one_runtime,
        except: &[],
        breaks: &[
            (With("template/Resources/GetSiteFunction/Properties/Architectures", r#"["x86_64"]"#), "GetSiteFunction"),
            (With("template/Resources/StoreReadingsFunction/Properties/MemorySize", "3008"), "StoreReadingsFunction"),
        ],
    },
    Rule {
        name: "A function's environment is what its binary reads",
        why: "it would end at its start, or carry settings that do nothing",
        check: functions::variables_are_those_that_are_read,
        except: &[
            ("InitializeSubscriptionFunction CIRCUIT_FAILURES", "has a default, five failures; nobody has had to change it"),
            ("CancelSubscriptionFunction CIRCUIT_FAILURES", "the same"),
        ],
        breaks: &[
            (Without("template/Resources/CloseSiteFunction/Properties/Environment/Variables/EVENTS_TABLE"), "CloseSiteFunction EVENTS_TABLE"),
            (With("template/Resources/GetSiteFunction/Properties/Environment/Variables/EVENTS_TABLE", "\"EventsTable\""), "GetSiteFunction EVENTS_TABLE"),
            (Text("functions/telemetry/src/paging.rs", "env(\"PAGING_SECRET_ARN\")", "env(\"PAGING_KEY_ARN\")"), "functions/telemetry/src/paging.rs"),
        ],
    },
    Rule {
        name: "Everybody calls a function by its alias `live`",
        why: "a gradual deployment shifts the alias; who goes around it gets the new version at once",
        check: functions::called_by_alias,
        except: &[],
        breaks: &[
            (With("template/Resources/StoreReadingsMapping/Properties/FunctionName", "\"StoreReadingsFunction\""), "StoreReadingsMapping"),
            (With("template/Resources/SiteTeardown/Properties/DefinitionSubstitutions/CloseSiteFunctionArn", "\"CloseSiteFunction.Arn\""), "SiteTeardown"),
            (With("template/Resources/GetSiteFunction/Properties/AutoPublishAlias", "\"latest\""), "GetSiteFunction"),
        ],
    },
    Rule {
        name: "A function logs JSON into a group of its own; every log group has an end",
        why: "a group that Lambda makes keeps logs for ever, and is paid for as long",
        check: functions::logs_with_an_end,
        except: &[],
        breaks: &[
            (Without("template/Resources/GetSiteFunction/Properties/LoggingConfig"), "GetSiteFunction"),
            (With("template/Resources/CloseSiteFunction/Properties/LoggingConfig/LogGroup", "\"GetSiteLogs\""), "CloseSiteFunction"),
            (Without("template/Resources/ApiAccessLogs/Properties/RetentionInDays"), "ApiAccessLogs"),
            (Without("template/Globals/Function/LoggingConfig/LogFormat"), "Globals"),
        ],
    },
    Rule {
        name: "Functions and API are traced",
        why: "nobody sees where the time of a slow call went",
        check: functions::traced,
        except: &[],
        breaks: &[
            (With("template/Resources/GetSiteFunction/Properties/Tracing", "\"PassThrough\""), "GetSiteFunction"),
            (Without("template/Resources/Api/Properties/TracingEnabled"), "Api"),
        ],
    },
    Rule {
        name: "Functions, alarms, schedules, secrets, parameters and outputs have a description",
        why: "it is what the console shows to who is on call",
        check: functions::described,
        except: &[],
        breaks: &[
            (Without("template/Resources/CloseSiteFunction/Properties/Description"), "CloseSiteFunction"),
            (Without("template/Resources/StuckSagasAlarm/Properties/AlarmDescription"), "StuckSagasAlarm"),
            (Without("template/Resources/CheckSagasFunction/Properties/Events/EveryFiveMinutes/Properties/Description"), "CheckSagasFunction"),
            (Without("template/Resources/PagingSecret/Properties/Description"), "PagingSecret"),
            (Without("template/Parameters/StageName/Description"), "StageName"),
            (Without("template/Outputs/ApiId/Description"), "ApiId"),
        ],
    },
    Rule {
        name: "A function behind the API ends before API Gateway's 29 seconds",
        why: "the caller would be told that it failed while it succeeds",
        check: functions::answers_in_time,
        except: &[],
        breaks: &[(With("template/Resources/AcceptReadingsFunction/Properties/Timeout", "30"), "AcceptReadingsFunction")],
    },
    Rule {
        name: "The payment provider is called by a limited number of functions at once",
        why: "a full queue would run into its rate limit",
        check: functions::provider_is_not_overrun,
        except: &[("ReconcileSubscriptionsFunction", "runs once an hour, and makes one call after the other")],
        breaks: &[
            (Without("template/Resources/CancelSubscriptionMapping/Properties/ScalingConfig"), "CancelSubscriptionFunction"),
            (Without("template/Resources/CancelSubscriptionMapping"), "CancelSubscriptionFunction"),
        ],
    },
    Rule {
        name: "Every function has a sample event",
        why: "`sam local invoke` and `make invoke` are how a newcomer runs one",
        check: functions::sample_events,
        except: &[],
        breaks: &[
            (NoFile("tests/events/close-site.json"), "CloseSiteFunction"),
            (Text("tests/events/open-site.json", "", "{}"), "tests/events/open-site.json"),
        ],
    },
    Rule {
        name: "Every function is in the README, at its service",
        why: "it is where one looks first",
        check: functions::listed_in_the_readme,
        except: &[],
        breaks: &[
            (Text("README.md", ", project-site |", " |"), "ProjectSiteFunction"),
            (Text("README.md", " functions: some minutes", " programs: some minutes"), "README.md"),
        ],
    },
    Rule {
        name: "Functions, tables, sagas and failure queues are on the dashboard",
        why: "what is not seen is not missed",
        check: functions::seen_on_the_dashboard,
        except: &[],
        breaks: &[
            (With("template/Resources/Dashboard/Properties/DashboardBody", "\"{\""), "Dashboard"),
            (With("template/Resources/Dashboard/Properties/DashboardBody", "\"{}\""), "SitesTable"),
            (With("template/Resources/Dashboard/Properties/DashboardBody", "\"{}\""), "FailureFiles"),
            (With("template/Resources/GetSiteFunction/Properties/FunctionName", "\"get-site\""), "GetSiteFunction"),
        ],
    },
    Rule {
        name: "Every function is tested, by its service or on the deployed stack",
        why: "an untested function fails at its first user",
        check: functions::tested,
        except: &[],
        breaks: &[
            (With("template/Resources/OpenSiteFunction", r#"{"Type": "AWS::Serverless::Function", "Properties": {}}"#), "OpenSiteFunction"),
            (NoFile("functions/telemetry/tests/http.rs"), "GetReadingsFunction"),
        ],
    },
];

#[rustfmt::skip]
const SERVICES: &[Rule] = &[
    Rule {
        name: "The root nests every service, with all its parameters, and nothing else",
        why: "a service would be missing after `sam deploy`, or run with a default",
        check: services::nested_with_all_parameters,
        except: &[],
        breaks: &[
            (Without("root/Resources/Billing"), "billing"),
            (Without("root/Resources/Telemetry/Properties/Parameters/ReadingsShards"), "telemetry"),
            (With("root/Resources/Sites/Properties/Parameters/Environment", "\"Environment\""), "sites"),
            (With("root/Resources/Extra", "{}"), "root"),
        ],
    },
    Rule {
        name: "A service is deployed after the services whose resources it names",
        why: "a mapping, a rule or a permission on what does not exist is refused",
        check: services::deployed_after_what_they_name,
        except: &[],
        breaks: &[
            (Without("root/Resources/Alerting/DependsOn/2"), "alerting"),
            (With("failures/Resources/OnCallTopic/Properties/Extra", "\"arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:${Environment}-sites-failures\""), "failures"),
            (With("devices/Resources/DevicesTable/Properties/Extra", "\"arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/${Environment}-inventory\""), "devices"),
        ],
    },
    Rule {
        name: "Parameters, conditions, globals and gradual deployment are identical in all templates",
        why: "a setting would mean one thing in one service, and another in the next",
        check: services::alike,
        except: &[],
        breaks: &[
            (With("billing/Globals/Function/Timeout", "11"), "billing"),
            (With("sites/Parameters/LogRetentionDays/Default", "7"), "sites"),
            (With("events/Conditions/ProtectTables", "[\"DeletionProtection\", \"yes\"]"), "events"),
            (Without("telemetry/Resources/CanaryDeployment"), "telemetry"),
        ],
    },
    Rule {
        name: "A function is in the template of the service that has its binary",
        why: "a team deploys its service alone",
        check: services::functions_of_their_service,
        except: &[],
        breaks: &[(With("billing/Resources/GetSiteFunction", r#"{"Type": "AWS::Serverless::Function"}"#), "GetSiteFunction")],
    },
    Rule {
        name: "Each service has an entry in samconfig.toml",
        why: "`make deploy SERVICE=...` builds and deploys by it",
        check: services::each_has_its_entry_in_samconfig,
        except: &[],
        breaks: &[(Text("samconfig.toml", "[inventory.deploy.parameters]", "[stock.deploy.parameters]"), "inventory")],
    },
];

#[rustfmt::skip]
const VERSIONS: &[Rule] = &[
    Rule {
        name: "A function's VersionDescription has its parameters, in 256 characters; a replaced version is retained",
        why: "SAM hashes a parameter's name, not its value: a changed value would never reach the alias",
        check: versions::with_the_parameters,
        except: &[],
        breaks: &[
            (Without("template/Resources/GetSiteFunction/Properties/VersionDescription"), "GetSiteFunction"),
            (With("template/Resources/CheckSagasFunction/Properties/VersionDescription", "\"${Architecture} ${LogLevel}\""), "CheckSagasFunction"),
            (With("template/Resources/GetSiteFunction/Properties/Environment/Variables/STAGE", "\"StageName\""), "GetSiteFunction"),
            (With("template/Parameters/StripePrices/MaxLength", "200"), "CancelSubscriptionFunction"),
            (Without("template/Parameters/StripeApiBase/MaxLength"), "ReconcileSubscriptionsFunction"),
            (Without("template/Resources/PublishEventsFunction/UpdateReplacePolicy"), "PublishEventsFunction"),
        ],
    },
    Rule {
        name: "An API whose definition has parameters is always deployed",
        why: "SAM hashes a parameter's name, not its value: its stage would keep the identity provider of before",
        check: versions::stage_follows_its_definition,
        except: &[],
        breaks: &[(Without("template/Resources/Api/Properties/AlwaysDeploy"), "Api")],
    },
    Rule {
        name: "A function that sends to its own queue says so, and no other may call itself",
        why: "Lambda ends a chain of 16 calls: a command would be lost to the dead letters; and it should end all others",
        check: versions::recursive_only_by_intent,
        except: &[
            ("InitializeSubscriptionFunction", "defers commands while the provider is out, for as long as its state waits (`Commands`)"),
            ("CancelSubscriptionFunction", "the same"),
        ],
        breaks: &[
            (With("template/Resources/StoreReadingsFunction/Properties/RecursiveLoop", "\"Allow\""), "StoreReadingsFunction"),
            (Without("template/Resources/CancelSubscriptionFunction/Properties/RecursiveLoop"), "CancelSubscriptionFunction RecursiveLoop"),
        ],
    },
    Rule {
        name: "Functions that the API, a stream or a queue calls are deployed gradually, and no others",
        why: "five minutes of 5 % show nothing of a function that is called once a minute; and each deployment uses up CodeDeploy's rate",
        check: versions::gradual_where_it_helps,
        except: &[],
        breaks: &[
            (Without("template/Resources/AcceptReadingsFunction/Properties/DeploymentPreference"), "AcceptReadingsFunction"),
            (With("template/Resources/CheckSagasFunction/Properties/DeploymentPreference", r#"{"Enabled": "GradualDeployment", "Type": "CanaryDeployment"}"#), "CheckSagasFunction"),
            (With("template/Resources/StoreReadingsFunction/Properties/DeploymentPreference/Type", "\"AllAtOnce\""), "StoreReadingsFunction"),
        ],
    },
];

#[rustfmt::skip]
const ACCESS: &[Rule] = &[
    Rule {
        name: "Every route of the API takes a signature, or a token of the user pool",
        why: "anybody could register sites, and be billed for them",
        check: access::every_route_knows_its_caller,
        except: &[],
        breaks: &[
            (Without("template/Resources/Api/Properties/DefinitionBody/paths/~1readings/post/security"), "POST /readings"),
            (With("template/Resources/Api/Properties/DefinitionBody/paths/~1sites/put", "{}"), "PUT /sites"),
            (Without("template/Resources/Api/Properties/DefinitionBody/components/securitySchemes/Iam/x-amazon-apigateway-authtype"), "Api"),
        ],
    },
    Rule {
        name: "A route requires its path's parameters, and takes a body up to a limit",
        why: "functions check bodies, to name the wrong field; so they must bound them, too",
        check: access::requests_are_checked,
        except: &[],
        breaks: &[
            (With("template/Resources/Api/Properties/DefinitionBody/paths/~1sites~1{siteId}/parameters", "[]"), "GET /sites/{siteId}"),
            (Text("functions/sites/src/create_site.rs", "http::read(", "read("), "POST /sites"),
        ],
    },
    Rule {
        name: "Calls are throttled, those that start sagas to ten a second",
        why: "a client that goes wild would be paid for by the call",
        check: access::calls_are_throttled,
        except: &[],
        breaks: &[
            (Without("template/Resources/Api/Properties/MethodSettings/0"), "* /*"),
            (With("template/Resources/Api/Properties/MethodSettings/1/ThrottlingRateLimit", "10000"), "POST /~1readings"),
            (With("template/Resources/Api/Properties/MethodSettings/2/ThrottlingRateLimit", "100"), "POST /sites"),
            (Without("template/Resources/Api/Properties/MethodSettings/3"), "DELETE /sites/{siteId}"),
        ],
    },
    Rule {
        name: "The API logs who calls, and from where",
        why: "an abuse could not be traced",
        check: access::calls_are_logged,
        except: &[],
        breaks: &[
            (Without("template/Resources/Api/Properties/AccessLogSetting"), "Api"),
            (With("template/Resources/Api/Properties/AccessLogSetting/Format", "\"$context.requestId\""), "Api"),
        ],
    },
    Rule {
        name: "API Gateway may call a function for one route, and does for each",
        why: "another API of the account, or another route, could reach a function past its checks",
        check: access::invocations_are_of_one_route,
        except: &[],
        breaks: &[
            (With("template/Resources/CreateSitePermission/Properties/SourceArn", "\"arn:${Api}/${StageName}/*/*\""), "CreateSitePermission"),
            (Without("template/Resources/CreateSitePermission/Properties/SourceArn"), "CreateSitePermission"),
            (Without("template/Resources/GetReadingsPermission"), "GET /sensors/{sensorId}/readings"),
        ],
    },
    Rule {
        name: "A function's or saga's role is its own, and written out in the template",
        why: "managed policies and SAM's templates grant more than one sees",
        check: access::roles_are_written_out,
        except: &[("ApiGatewayLogRole", "AWS's own policy for API Gateway's one role per account; it may write logs, nothing else")],
        breaks: &[
            (With("template/Resources/GetSiteFunction/Properties/Policies", r#"["AmazonDynamoDBFullAccess"]"#), "GetSiteFunction"),
            (With("template/Resources/GetSiteFunction/Properties/Role", "\"Shared.Arn\""), "GetSiteFunction"),
            (With("template/Resources/SiteTeardown/Properties/Policies", r#"["AWSLambda_FullAccess"]"#), "SiteTeardown"),
        ],
    },
    Rule {
        name: "Policies name each action",
        why: "a wildcard grants what AWS will add tomorrow",
        check: access::actions_by_name,
        except: &[],
        breaks: &[
            (With("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Action", "\"dynamodb:*\""), "GetSiteFunction"),
            (With("template/Resources/SiteTeardown/Properties/Policies/0/Statement/0/Action", r#"["lambda:Invoke*"]"#), "SiteTeardown"),
            (With("template/Resources/SiteTeardown/Properties/Policies/0/Statement", r#"{"Effect": "Allow", "Action": "*", "Resource": "*"}"#), "SiteTeardown"),
            (Without("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Action"), "GetSiteFunction"),
        ],
    },
    Rule {
        name: "Policies name each resource; a wildcard only follows the name of a Fieldstation resource",
        why: "a function that is taken over reaches what its role reaches",
        check: access::resources_by_name,
        except: &[
            ("SiteOnboarding logs:*", "Step Functions demands them for its log group, and they know no narrower resource"),
            ("SiteTeardown logs:*", "the same"),
            ("PublishEventsFunction dynamodb:ListStreams", "Lambda asks for it, and it knows no narrower resource; it lists names"),
            ("RecordFailureFunction sqs:*", "each service maps its own failure queue to it, so the queues are known by name only: <environment>-*-failures"),
            ("CheckConsumersFunction lambda:ListEventSourceMappings", "it knows no narrower resource; it lists states"),
            ("CheckConsumersFunction sqs:GetQueueAttributes", "the queues belong to all services; it counts messages, and reads none"),
        ],
        breaks: &[
            (With("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Resource", "\"*\""), "GetSiteFunction dynamodb:Query"),
            (With("template/Resources/RecordFailureFunction/Properties/Policies/0/Statement/1/Resource", "\"arn:aws:s3:::*\""), "RecordFailureFunction s3:PutObject"),
            (With("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Resource", r#"[["ProtectTables", "SitesTable.Arn", "*"]]"#), "GetSiteFunction dynamodb:Query"),
            (With("template/Resources/SiteTeardown/Properties/Policies/0/Statement/0/Resource", "\"arn:${AWS::Partition}:lambda:*\""), "SiteTeardown lambda:InvokeFunction"),
        ],
    },
    Rule {
        name: "No function may read a whole table",
        why: "it costs with the table's age, and hands over everything at once",
        check: access::no_table_is_read_whole,
        except: &[
            ("GetSiteFunction ${SitesTable.Arn}/index/byStatus", "`GET /sites` without a status walks the index, a page a call"),
            ("ReconcileSubscriptionsFunction BillingTable.Arn", "it compares all of billing's rows with the provider, tombstones included, once an hour; an index would cost a write for each row and be read whole as well"),
        ],
        breaks: &[(With("template/Resources/GetSiteFunction/Properties/Policies/0/Statement/0/Action", "\"dynamodb:Scan\""), "GetSiteFunction SitesTable.Arn")],
    },
    Rule {
        name: "A queue takes messages from named services, for this account's own rules and buckets",
        why: "anybody's rule could fill our failures, or forge them",
        check: access::queues_take_from_named_senders,
        except: &[],
        breaks: &[
            (Without("template/Resources/SitesFailuresPolicy/Properties/PolicyDocument/Statement/0/Condition"), "SitesFailuresPolicy"),
            (With("template/Resources/FailureFilesPolicy/Properties/PolicyDocument/Statement/0/Principal", "\"*\""), "FailureFilesPolicy"),
        ],
    },
    Rule {
        name: "A command queue denies everybody but its state machine and its function",
        why: "a command cancels a site's subscription, or opens one",
        check: access::commands_come_from_their_saga,
        except: &[],
        breaks: &[
            (Without("template/Resources/CancelSubscriptionQueuePolicy"), "CancelSubscriptionQueue"),
            (With("template/Resources/InitializeSubscriptionQueuePolicy/Properties/PolicyDocument/Statement/0/Effect", "\"Allow\""), "InitializeSubscriptionQueue"),
            (With("template/Resources/InitializeSubscriptionQueuePolicy/Properties/PolicyDocument/Statement/0/Principal", r#"{"AWS": "*"}"#), "InitializeSubscriptionQueue"),
            (With("template/Resources/CancelSubscriptionQueuePolicy/Properties/PolicyDocument/Statement/0/Condition/ArnNotLike/aws:PrincipalArn/0", "\"arn:${AWS::Partition}:iam::${AWS::AccountId}:role/${Environment}/*\""), "CancelSubscriptionQueue"),
            (With("template/Resources/SiteTeardown/Properties/Policies/0/Statement/1/Resource", "\"InitializeSubscriptionQueue.Arn\""), "SiteTeardown"),
        ],
    },
    Rule {
        name: "Rules name types and sources: ours for ours, anybody else's for what others tell us",
        why: "another system's event would pass for a step's",
        check: access::events_of_known_sources,
        except: &[],
        breaks: &[
            (Without("template/Resources/StartOnboardingFunction/Properties/Events/SiteCreated/Properties/Pattern/source"), "StartOnboardingFunction"),
            (With("template/Resources/ImportSiteFunction/Properties/Events/Requested/Properties/Pattern/source", r#"[{"prefix": "fieldstation."}]"#), "ImportSiteFunction"),
            (With("template/Resources/ProjectSensorsFunction/Properties/Events/SensorsChanged/Properties/Pattern/source", r#"[{"prefix": ""}]"#), "ProjectSensorsFunction"),
            (Without("template/Resources/SiteTeardownFailed/Properties/EventPattern/detail-type"), "SiteTeardownFailed"),
            (With("template/Resources/ImportSiteFunction/Properties/Events/Requested/Properties/Pattern/detail-type", r#"["SiteRegistrationRequested", "SiteCreated"]"#), "ImportSiteFunction"),
        ],
    },
    Rule {
        name: "Secrets are made and kept by Secrets Manager, and functions are told where",
        why: "parameters and environments are shown in the console, and in every description of the stack",
        check: access::secrets_stay_in_their_store,
        except: &[],
        breaks: &[
            (With("template/Parameters/StripeSecretKey", r#"{"Type": "String", "NoEcho": true}"#), "StripeSecretKey"),
            (With("template/Resources/GetReadingsFunction/Properties/Environment/Variables/PAGING_SECRET", "\"x\""), "GetReadingsFunction"),
            (With("template/Resources/GetReadingsFunction/Properties/Environment/Variables/PAGING", "\"{{resolve:secretsmanager:x}}\""), "GetReadingsFunction"),
            (With("template/Resources/StripeSecret/Properties/SecretString", "\"sk_live_x\""), "StripeSecret"),
        ],
    },
    Rule {
        name: "Of all functions, only the event log's publishers may put events on the bus",
        why: "an event would be told that no committed row stands behind",
        check: access::only_publishers_speak_for_us,
        except: &[],
        breaks: &[(With("template/Resources/ProjectSiteFunction/Properties/Policies/0/Statement/0/Action", "\"events:PutEvents\""), "ProjectSiteFunction")],
    },
    Rule {
        name: "The bus denies our sources to all but the event log's publishers",
        why: "whoever may put events on the bus could tell what no committed row stands behind",
        check: access::our_sources_are_ours_alone,
        except: &[],
        breaks: &[
            (Without("template/Resources/EventBusPolicy"), "EventBus"),
            (With("template/Resources/EventBusPolicy/Properties/Statement/Effect", "\"Allow\""), "EventBus"),
            (Without("template/Resources/EventBusPolicy/Properties/Statement/Condition/ForAnyValue:StringLike"), "EventBus"),
            (Without("template/Resources/EventBusPolicy/Properties/Statement/Condition/ArnNotEquals/aws:PrincipalArn/0"), "EventBus"),
            (With("template/Parameters/GuardEventSources/Default", "\"false\""), "GuardEventSources"),
            (Text("samconfig.toml", " DeletionProtection=true", " GuardEventSources=false"), "samconfig.toml"),
        ],
    },
];

#[rustfmt::skip]
const DATA: &[Rule] = &[
    Rule {
        name: "A table outlives its stack, can be brought back to any second, and protected from deletion",
        why: "a wrong deployment, or a wrong hand, would take the sites with it",
        check: data::tables_outlive_mistakes,
        except: &[],
        breaks: &[
            (Without("template/Resources/SitesTable/DeletionPolicy"), "SitesTable"),
            (Without("template/Resources/BillingTable/Properties/PointInTimeRecoverySpecification"), "BillingTable"),
            (Without("template/Resources/FailuresTable/Properties/DeletionProtectionEnabled"), "FailuresTable"),
        ],
    },
    Rule {
        name: "A table is paid on demand",
        why: "a guessed capacity throttles the first crowd",
        check: data::tables_grow_with_their_load,
        except: &[],
        breaks: &[(With("template/Resources/ReadingsTable/Properties/BillingMode", "\"PROVISIONED\""), "ReadingsTable")],
    },
    Rule {
        name: "Tables, queues, streams, buckets and topics are encrypted",
        why: "by AWS's keys: the tables' and the stream's in KMS, so that their use is in CloudTrail; the queues' and buckets' are free, and both may hold a payload for a while",
        check: data::everything_is_encrypted,
        except: &[("OnCallTopic", "CloudWatch can't publish to a topic under the AWS-managed key, and alarms carry no data of a site")],
        breaks: &[
            (Without("template/Resources/EventsTable/Properties/SSESpecification"), "EventsTable"),
            (Without("template/Resources/CancelSubscriptionQueue/Properties/SqsManagedSseEnabled"), "CancelSubscriptionQueue"),
            (Without("template/Resources/ReadingsStream/Properties/StreamEncryption"), "ReadingsStream"),
            (Without("template/Resources/FailuresBucket/Properties/BucketEncryption"), "FailuresBucket"),
            (With("template/Resources/Extra", r#"{"Type": "AWS::SNS::Topic", "Properties": {}}"#), "Extra"),
        ],
    },
    Rule {
        name: "A bucket can't be made public, holds only objects of ours, is reached by TLS alone, and outlives its stack",
        why: "it holds readings, events and registrations that failed",
        check: data::buckets_are_private,
        except: &[],
        breaks: &[
            (With("template/Resources/FailuresBucket/Properties/PublicAccessBlockConfiguration/BlockPublicPolicy", "false"), "FailuresBucket"),
            (Without("template/Resources/FailuresBucket/Properties/OwnershipControls"), "FailuresBucket"),
            (Without("template/Resources/FailuresBucketPolicy"), "FailuresBucket"),
            (Without("template/Resources/FailuresBucket/DeletionPolicy"), "FailuresBucket"),
        ],
    },
    Rule {
        name: "The fixed names, and the outputs of the API, are there",
        why: "`fieldctl`, the tests and other services find everything by them",
        check: data::contracts_are_there,
        except: &[],
        breaks: &[
            (Without("template/Outputs/ApiUrl"), "ApiUrl"),
            (With("template/Resources/EventsTable/Properties/TableName", "\"${Environment}-log\""), "events"),
            (Without("template/Resources/SitesTable/Properties/TableName"), "sites"),
        ],
    },
    Rule {
        name: "Every parameter is in a group",
        why: "the console would show it last, under `Other parameters`",
        check: data::parameters_are_grouped,
        except: &[],
        breaks: &[(With("template/Parameters/Extra", "{}"), "Extra")],
    },
    Rule {
        name: "Production deploys gradually, protects its tables and asks before it changes anything",
        why: "the defaults are for trying out",
        check: data::production_is_careful,
        except: &[],
        breaks: &[(Text("samconfig.toml", " DeletionProtection=true", ""), "samconfig.toml")],
    },
];

#[rustfmt::skip]
const SUPPLY: &[Rule] = &[
    Rule {
        name: "Python tools are pinned by version and hash, and installed so",
        why: "a taken-over package would run in CI, which may deploy",
        check: supply::python_by_hash,
        except: &[],
        breaks: &[
            (Text("tools/local/requirements.txt", "aiohttp==", "aiohttp>="), "tools/local/requirements.txt"),
            (Text(".ci/requirements.txt", " \\\n", "\n"), ".ci/requirements.txt"),
            (Text("Makefile", " --require-hashes", ""), "Makefile"),
        ],
    },
    Rule {
        name: "Node tools are pinned by hash, and installed by their lock file",
        why: "the same",
        check: supply::node_by_hash,
        except: &[],
        breaks: &[
            (Text("tools/local/package-lock.json", "\"integrity\": \"sha512-", "\"integrity\": \"sha1-"), "tools/local/package-lock.json"),
            (Text("Makefile", "npm ci", "npm install"), "Makefile"),
        ],
    },
    Rule {
        name: "Crates come by Cargo.lock; cargo-deny checks their licences and sources",
        why: "a newer version, or another source, would come in unseen",
        check: supply::crates_by_lock,
        except: &[],
        breaks: &[
            (Text(".github/workflows/smoke.yml", " --locked", ""), ".github/workflows/smoke.yml"),
            (Text("Makefile", "cargo clippy $(CARGO_FLAGS) --workspace", "cargo clippy --workspace"), "Makefile"),
            (Text("Makefile", "cargo test $(CARGO_FLAGS) $(UNIT_PACKAGES) $(ARGS)", "sudo cargo test $(UNIT_PACKAGES)"), "Makefile"),
            (Text(".ci/run", "\nmake --no-print-directory deny\n", "\n"), ".ci/run"),
            (Text(".github/workflows/advisories.yml", "make advisories", "true"), ".github/workflows/advisories.yml"),
            (Text("Makefile", "check bans licenses sources", "check bans"), "Makefile"),
        ],
    },
    Rule {
        name: "Workflows run actions of one commit",
        why: "a tag can be moved to other code",
        check: supply::actions_by_commit,
        except: &[],
        breaks: &[(Text(".github/workflows/test.yml", "uses: actions/checkout@", "uses: actions/checkout@v5 # "), ".github/workflows/test.yml")],
    },
    Rule {
        name: "Workflows read the repository, take a role by OpenID Connect, end, and run no stranger's change with our rights",
        why: "a token that may write, or a long-lived key, is what an attacker looks for",
        check: supply::workflows_with_few_rights,
        except: &[],
        breaks: &[
            (Text(".github/workflows/test.yml", "permissions:\n  contents: read\n", ""), ".github/workflows/test.yml"),
            (Text(".github/workflows/build.yml", "contents: read", "contents: write"), ".github/workflows/build.yml"),
            (Text(".github/workflows/test.yml", "pull_request:", "pull_request_target:"), ".github/workflows/test.yml"),
            (Text(".github/workflows/advisories.yml", "    timeout-minutes: 15\n", ""), ".github/workflows/advisories.yml"),
            (Text(".github/workflows/smoke.yml", "role-to-assume: ${{ vars.", "aws-access-key-id: ${{ secrets."), ".github/workflows/smoke.yml"),
            (Text(".github/workflows/staging.yml", "stack: fieldstation-staging }\n", "stack: fieldstation-staging }\n    secrets: inherit\n"), ".github/workflows/staging.yml"),
        ],
    },
    Rule {
        name: "What is deployed is built without a cache, and no job that can take a role restores one",
        why: "a run of another branch can put a poisoned entry into the cache",
        check: supply::no_cache_where_it_counts,
        except: &[],
        breaks: &[
            (Text(".github/workflows/build.yml", "      - run: make setup", "      - uses: Swatinem/rust-cache@779680da715d629ac1d338a641029a2f4372abb5 # v2.8.2\n      - run: make setup"), ".github/workflows/build.yml"),
            (Text(".github/workflows/smoke.yml", "      - run: cargo build", "      - uses: actions/cache@0057852bfaa89a56745cba8c7296529d2fc39830 # v4.3.0\n      - run: cargo build"), ".github/workflows/smoke.yml"),
            (Text(".github/workflows/staging.yml", "{ python-version: '3.11' }", "{ python-version: '3.11', cache: pip }"), ".github/workflows/staging.yml"),
        ],
    },
    Rule {
        name: "Production takes the build of a push to main of this repository that passed staging",
        why: "staging can be run on any branch, and a fork's run has the same file name",
        check: supply::production_comes_from_main,
        except: &[],
        breaks: &[
            (Text(".github/workflows/prod.yml", ".head_branch <<<", ".head_sha <<<"), ".github/workflows/prod.yml"),
            (Text(".github/workflows/prod.yml", "= main ||", "= main || true ||"), ".github/workflows/prod.yml"),
            (Text(".github/workflows/prod.yml", ".event <<< \"$run\")\" = push", ".event <<< \"$run\")\" != schedule"), ".github/workflows/prod.yml"),
            (Text(".github/workflows/prod.yml", "= \"$GITHUB_REPOSITORY\"", "!= \"\""), ".github/workflows/prod.yml"),
            (Text(".github/workflows/prod.yml", "= success", "!= failure"), ".github/workflows/prod.yml"),
            (Text(".github/workflows/prod.yml", "refs/remotes/origin/main", "HEAD"), ".github/workflows/prod.yml"),
            (Text(".github/workflows/staging.yml", "branches: [main]", "tags: [main]"), ".github/workflows/staging.yml"),
        ],
    },
    Rule {
        name: "fieldctl, the demo and the data logger print through one writer that escapes control and invisible characters",
        why: "data from outside could control the operator's terminal",
        check: supply::output_is_escaped,
        except: &[],
        breaks: &[
            (Text("fieldctl/src/commands/sites.rs", "    screen.line(\"\")?;\n    let steps", "    println!(\"{site}\");\n    let steps"), "fieldctl/src/commands/sites.rs"),
            (Text("fieldctl/src/main.rs", "output::complain(&trouble)", "eprintln!(\"{}\", trouble.message)"), "fieldctl/src/main.rs"),
            (Text("fieldctl/src/commands/sites.rs", "Progress::spinner()", "indicatif::ProgressBar::new_spinner()"), "fieldctl/src/commands/sites.rs"),
            (Text("fieldctl/src/commands.rs", "output::ask(question)?", "io::stderr().write_all(question.as_bytes())?"), "fieldctl/src/commands.rs"),
            (Text("tests/src/meter.rs", "terminal::print(format_args!(", "println!("), "tests/src/meter.rs"),
            (Text("tools/demo/src/bin/demo/progress.rs", "set_message(terminal::line(state).into_owned())", "set_message(state.to_owned())"), "tools/demo/src/bin/demo/progress.rs"),
        ],
    },
    Rule {
        name: "The local stack listens on this machine alone",
        why: "an emulator asks nobody who they are",
        check: supply::local_stack_is_local,
        except: &[],
        breaks: &[
            (Text("tools/local/stack.py", "HOST = \"127.0.0.1\"", "HOST = \"0.0.0.0\""), "tools/local/stack.py"),
            (Text("tools/local/stack.py", "\"BIND_HOST\": HOST,", ""), "tools/local/stack.py"),
        ],
    },
];

#[rustfmt::skip]
const FIRST_USE: &[Rule] = &[
    Rule {
        name: "make demo asks before it deletes a running local stack",
        why: "somebody may be working on it",
        check: first_use::a_running_stack_is_not_lost,
        except: &[],
        breaks: &[(Text("Makefile", "$(STACK) may-forget", "true"), "Makefile")],
    },
    Rule {
        name: "The goals of the Makefile name what is missing, and show why an installation failed",
        why: "a newcomer would give up",
        check: first_use::missing_things_are_named,
        except: &[],
        breaks: &[
            (Text("Makefile", "local-env: require-docker", "local-env:"), "Makefile"),
            (Text("Makefile", "lambda-image: require-docker build-local", "lambda-image: build-local"), "Makefile"),
            (Text("Makefile", "$(STACK) kits air_temperature", "true air_temperature"), "Makefile"),
            (Text("Makefile", "$(STACK) api-url)", "true)"), "Makefile"),
            (Text("Makefile", "npm ci --prefix tools/local --loglevel=error", "npm ci --prefix tools/local --silent"), "Makefile"),
            (Text("tests/smoke.sh", "KitsOutOfStock", "Nothing"), "tests/smoke.sh"),
        ],
    },
    Rule {
        name: "The documented kinesis put-record works with versions 1 and 2 of the AWS CLI",
        why: "without fileb:// one of them sends the base64 text itself",
        check: first_use::documented_commands_work_with_each_aws_cli,
        except: &[],
        breaks: &[(Text("docs/integrating.md", "--data fileb://bundle.json.gz", "--data \"$(gzip -c bundle.json | base64 -w0)\""), "docs/integrating.md")],
    },
];
