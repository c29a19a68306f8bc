//! Checks the requests of the functions and state machines during the tests, from the log of the local stack: each
//! request was granted, and each grant was used.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::ASCII_MARKDOWN};
use testkit::template::{Template, root};
use tests::Stack;

use crate::{
    SESSION,
    grants::{Deployed, Grant, grants, matches, roles},
};

/// A grant that may stay although no test uses it.
struct Unused {
    grantee: &'static str,
    action: &'static str,
    /// The resource. In `grantee`, `action` and `resource`, `*` matches any text.
    resource: &'static str,
    reason: &'static str,
}

impl Unused {
    fn name(&self) -> String {
        format!("{} {} {}", self.grantee, self.action, self.resource)
    }

    fn matches(&self, grant: &Grant) -> bool {
        matches(self.grantee, &grant.grantee)
            && matches(self.action, &grant.action)
            && matches(self.resource, &grant.resource_name())
    }
}

const fn unused(
    grantee: &'static str,
    action: &'static str,
    resource: &'static str,
    reason: &'static str,
) -> Unused {
    Unused { grantee, action, resource, reason }
}

const REBUILD: &str = "a minute after a rebuild, the rows of the earlier generation are deleted";

/// The grants that may stay unused.
const UNUSED: &[Unused] = &[
    // AWS makes these requests itself, and the emulator does not.
    unused(
        "publish-events",
        "dynamodb:ListStreams",
        "*",
        "Lambda calls it when the mapping is created",
    ),
    unused(
        "watch-stock",
        "dynamodb:ListStreams",
        "*",
        "Lambda calls it when the mapping is created",
    ),
    unused("site-*", "logs:*", "*", "Step Functions sets up the delivery of its logs"),
    unused("site-onboarding", "events:*", "rule *", NESTED),
    unused("site-onboarding", "states:DescribeExecution", "executions of SiteTeardown", NESTED),
    unused("site-onboarding", "states:StopExecution", "executions of SiteTeardown", NESTED),
    // This permission reads nothing. It changes S3's response for a missing file from "forbidden" to "not found".
    unused(
        "record-failure",
        "s3:ListBucket",
        "FailuresBucket",
        "S3 checks it if a file does not exist",
    ),
    // Used in cases that only the functions' own tests cause, not the tests of the deployed stack.
    unused(
        "*",
        "dynamodb:UpdateItem",
        "LimitsTable",
        "an execution environment uses the table from its second request within ten seconds on",
    ),
    unused(
        "cancel-subscription",
        "sqs:SendMessage",
        "CancelSubscriptionQueue",
        "an outage while a site is torn down",
    ),
    unused(
        "cancel-subscription",
        "states:SendTaskFailure",
        "SiteTeardown",
        "a cancellation that fails permanently",
    ),
    unused(
        "publish-events",
        "dynamodb:Query",
        "EventsTable",
        "an event arrives before the previous event of its entity",
    ),
    unused(
        "sweep-events",
        "dynamodb:Query",
        "EventsTable",
        "an event is found before the previous event of its entity",
    ),
    unused(
        "sweep-events",
        "sqs:SendMessage",
        "EventsFailures",
        "EventBridge rejects an event only when the sweep publishes it, or the sweep fails",
    ),
    unused(
        "watch-stock",
        "sqs:SendMessage",
        "InventoryFailures",
        "a row of the stock that can't be read",
    ),
    unused(
        "watch-stock",
        "s3:*",
        "FailuresBucket*",
        "Lambda gives up on a record after an hour of failures",
    ),
    unused(
        "watch-network",
        "dynamodb:Query",
        "EventsTable",
        "an event arrives before the previous event of its entity",
    ),
    unused("watch-network", "dynamodb:Scan", "NetworkTable", REBUILD),
    unused("watch-network", "dynamodb:BatchWriteItem", "NetworkTable", REBUILD),
    unused(
        "watch-network",
        "sqs:SendMessage",
        "NetworkFailures",
        "a record of the stream that is no event",
    ),
    unused(
        "watch-network",
        "s3:*",
        "FailuresBucket*",
        "Lambda gives up on a record after 12 hours of failures",
    ),
    unused(
        "check-consumers",
        "sqs:GetQueueAttributes",
        "*",
        "the messages of a queue are counted when its mapping does not run",
    ),
    unused(
        "project-rules",
        "sqs:SendMessage",
        "AlertingFailures",
        "a change of a sensor that can't be projected",
    ),
    unused("check-sagas", "states:DescribeExecution", "executions of *", "a saga is stuck"),
    unused(
        "check-sagas",
        "states:GetExecutionHistory",
        "executions of *",
        "a saga is running during the check",
    ),
    unused(
        "recover-onboarding",
        "states:DescribeExecution",
        "executions of *",
        "an event that is too large to contain the input",
    ),
];

const NESTED: &str = "Step Functions monitors the nested execution, and stops it with its parent";

/// Resources that do not exist. Tests configure functions with them to make calls fail.
const NONEXISTENT: &[&str] = &["*no-such-table", "*no-such-table/*", "*no-such-machine"];

/// Returns the reasons that apply to no grant.
pub fn obsolete_reasons(grants: &BTreeSet<Grant>) -> Vec<String> {
    let obsolete = UNUSED.iter().filter(|unused| !grants.iter().any(|grant| unused.matches(grant)));
    obsolete.map(Unused::name).collect()
}

/// A decision of the local stack's authorisation.
struct Decision {
    allowed: bool,
    grantee: String,
    session: String,
    action: String,
    resource: String,
}

/// Prints the unused grants and the denials, and fails on those without a reason.
pub async fn check(template: &Template, stack: &Stack) -> Result<()> {
    let deployed = Deployed::read(stack, template).await?;
    let decisions = decisions(template, &deployed)?;
    let is_used = |grantee: &str, action: &str, arn: &str| {
        decisions.iter().any(|decision| {
            decision.allowed
                && decision.session != SESSION
                && decision.grantee == grantee
                && decision.action == action
                && matches(arn, &decision.resource)
        })
    };
    let grants = grants(template);
    ensure!(
        is_used("create-site", "dynamodb:PutItem", &deployed.arn("SitesTable.Arn")),
        "the log has no requests of the tests; run `make e2e-test` first"
    );
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["who", "action", "resource", "reason to keep it"]);
    let (mut without_reason, mut needed) = (0, BTreeSet::new());
    for grant in &grants {
        let arn = deployed.arn(&grant.resource);
        if is_used(&grant.grantee, &grant.action, &arn) {
            continue;
        }
        let reason = UNUSED.iter().find(|unused| unused.matches(grant));
        without_reason += usize::from(reason.is_none());
        needed.extend(reason.map(Unused::name));
        let reason = reason.map_or("NO REASON", |unused| unused.reason);
        table.add_row([&grant.grantee, &grant.action, &grant.resource_name(), reason]);
    }
    terminal::print(format_args!("{} grants. Unused:\n{}", grants.len(), table.trim_fmt()));
    // Not an error: because of timing, some grants are used only in some runs.
    let unneeded: Vec<_> =
        UNUSED.iter().map(Unused::name).filter(|it| !needed.contains(it)).collect();
    terminal::print(format_args!("Exceptions that this run did not need: {unneeded:#?}"));
    let denied: Vec<String> = decisions
        .iter()
        .filter(|decision| !decision.allowed && decision.session != SESSION)
        .filter(|decision| !NONEXISTENT.iter().any(|pattern| matches(pattern, &decision.resource)))
        .map(|decision| {
            format!("{} on {} to {}", decision.action, decision.resource, decision.grantee)
        })
        .collect();
    terminal::print(format_args!(
        "Denied, except for the denials that the tests expect: {denied:#?}"
    ));
    ensure!(
        without_reason == 0,
        "{without_reason} grants were never used; remove them from the template"
    );
    ensure!(denied.is_empty(), "{} requests were denied; grant them in the template", denied.len());
    Ok(())
}

fn decisions(template: &Template, deployed: &Deployed) -> Result<Vec<Decision>> {
    let roles = roles(template);
    let roles: BTreeMap<_, _> =
        roles.iter().map(|(role, grantee)| (deployed.id(role), grantee.as_str())).collect();
    let folder = env::var_os("FIELDSTATION_LOCAL_DIR").map(PathBuf::from);
    let log = folder.unwrap_or_else(|| root().join("target/local")).join("authorisations.log");
    let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    text.lines()
        .map(|line| {
            let mut parts = line.split('\t');
            let mut next =
                || parts.next().with_context(|| format!("invalid line in the log: {line:?}"));
            let (allowed, role, session) = (next()? == "allowed", next()?, next()?.to_owned());
            let grantee = roles.get(role).copied().unwrap_or(role).to_owned();
            Ok(Decision {
                allowed,
                grantee,
                session,
                action: next()?.to_owned(),
                resource: next()?.to_owned(),
            })
        })
        .collect()
}
