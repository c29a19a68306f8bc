//! Checks the requests of the functions and state machines during the tests, as the local stack logged them:
//! each was granted, and each grant was used.

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
    who: &'static str,
    action: &'static str,
    /// The resource. In all three fields `*` matches any text.
    on: &'static str,
    why: &'static str,
}

impl Unused {
    fn name(&self) -> String {
        format!("{} {} {}", self.who, self.action, self.on)
    }

    fn is_of(&self, grant: &Grant) -> bool {
        matches(self.who, &grant.who)
            && matches(self.action, &grant.action)
            && matches(self.on, &grant.on())
    }
}

const fn unused(
    who: &'static str,
    action: &'static str,
    on: &'static str,
    why: &'static str,
) -> Unused {
    Unused { who, action, on, why }
}

/// The grants that may stay unused.
const UNUSED: &[Unused] = &[
    // AWS makes these requests itself, and the emulator does not.
    unused(
        "publish-events",
        "dynamodb:ListStreams",
        "*",
        "Lambda asks for it when the mapping is made",
    ),
    unused("site-*", "logs:*", "*", "Step Functions sets up the delivery of its logs"),
    unused("site-onboarding", "events:*", "rule *", NESTED),
    unused("site-onboarding", "states:DescribeExecution", "executions of SiteTeardown", NESTED),
    unused("site-onboarding", "states:StopExecution", "executions of SiteTeardown", NESTED),
    // It reads nothing: it changes S3's response for a missing file from "forbidden" to "not found".
    unused(
        "record-failure",
        "s3:ListBucket",
        "FailuresBucket",
        "S3 looks at it where a file is gone",
    ),
    // Used in cases that only the functions' own tests cause, not the tests of the deployed stack.
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
        "a cancellation refused for good",
    ),
    unused(
        "publish-events",
        "dynamodb:Query",
        "EventsTable",
        "an event that is delivered before its entity's previous one",
    ),
    unused(
        "sweep-events",
        "dynamodb:Query",
        "EventsTable",
        "an event that is found before its entity's previous one",
    ),
    unused(
        "sweep-events",
        "sqs:SendMessage",
        "EventsFailures",
        "an event that EventBridge refuses only when the sweep publishes it, or a sweep that fails",
    ),
    unused(
        "check-consumers",
        "sqs:GetQueueAttributes",
        "*",
        "the messages of a queue are counted when its mapping does not run",
    ),
    unused("check-sagas", "states:DescribeExecution", "executions of *", "a saga is stuck"),
    unused(
        "check-sagas",
        "states:GetExecutionHistory",
        "executions of *",
        "a saga runs while the function looks",
    ),
    unused(
        "recover-onboarding",
        "states:DescribeExecution",
        "executions of *",
        "an event too large to have the input",
    ),
];

const NESTED: &str = "Step Functions follows the nested execution, and stops it with its parent";

/// The resources to which tests point a function so that it fails.
const PROVOKED: &[&str] = &["*no-such-table", "*no-such-table/*", "*no-such-machine"];

/// Returns the reasons that apply to no grant.
pub fn idle_reasons(grants: &BTreeSet<Grant>) -> Vec<String> {
    let idle = UNUSED.iter().filter(|unused| !grants.iter().any(|grant| unused.is_of(grant)));
    idle.map(Unused::name).collect()
}

/// A decision of the local stack's authorisation.
struct Decision {
    allowed: bool,
    who: String,
    session: String,
    action: String,
    resource: String,
}

/// Prints the unused grants and the denials, and fails on those without a reason.
pub async fn judge(template: &Template, stack: &Stack) -> Result<()> {
    let deployed = Deployed::of(stack, template).await?;
    let decisions = decisions(template, &deployed)?;
    let used = |who: &str, action: &str, arn: &str| {
        decisions.iter().any(|decision| {
            decision.allowed
                && decision.session != SESSION
                && decision.who == who
                && decision.action == action
                && matches(arn, &decision.resource)
        })
    };
    let grants = grants(template);
    ensure!(
        used("create-site", "dynamodb:PutItem", &deployed.arn("SitesTable.Arn")),
        "nothing was tried on this stack yet: run the tests first, as `make e2e-test` does"
    );
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["who", "action", "resource", "why it stays"]);
    let (mut without_reason, mut needed) = (0, BTreeSet::new());
    for grant in &grants {
        let arn = deployed.arn(&grant.resource);
        if used(&grant.who, &grant.action, &arn) {
            continue;
        }
        let reason = UNUSED.iter().find(|unused| unused.is_of(grant));
        without_reason += usize::from(reason.is_none());
        needed.extend(reason.map(Unused::name));
        let why = reason.map_or("NO REASON", |unused| unused.why);
        table.add_row([&grant.who, &grant.action, &grant.on(), why]);
    }
    terminal::print(format_args!("{} grants; never used:\n{}", grants.len(), table.trim_fmt()));
    // Not an error: some grants are used in some runs only, which depends on timing.
    let spare: Vec<_> = UNUSED.iter().map(Unused::name).filter(|it| !needed.contains(it)).collect();
    terminal::print(format_args!("Reasons that this run did not need: {spare:#?}"));
    let denied: Vec<String> = decisions
        .iter()
        .filter(|decision| !decision.allowed && decision.session != SESSION)
        .filter(|decision| !PROVOKED.iter().any(|pattern| matches(pattern, &decision.resource)))
        .map(|decision| format!("{} on {} to {}", decision.action, decision.resource, decision.who))
        .collect();
    terminal::print(format_args!(
        "Denied, but for what the tests asked for to be denied: {denied:#?}"
    ));
    ensure!(without_reason == 0, "{without_reason} grants were never used: take them away");
    ensure!(denied.is_empty(), "{} permissions are missing", denied.len());
    Ok(())
}

fn decisions(template: &Template, deployed: &Deployed) -> Result<Vec<Decision>> {
    let roles = roles(template);
    let roles: BTreeMap<_, _> =
        roles.iter().map(|(role, who)| (deployed.id(role), who.as_str())).collect();
    let folder = env::var_os("FIELDSTATION_LOCAL_DIR").map(PathBuf::from);
    let log = folder.unwrap_or_else(|| root().join("target/local")).join("authorisations.log");
    let text = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
    text.lines()
        .map(|line| {
            let mut parts = line.split('\t');
            let mut next = || parts.next().with_context(|| format!("{line:?} is no decision"));
            let (allowed, role, session) = (next()? == "allowed", next()?, next()?.to_owned());
            let who = roles.get(role).copied().unwrap_or(role).to_owned();
            Ok(Decision {
                allowed,
                who,
                session,
                action: next()?.to_owned(),
                resource: next()?.to_owned(),
            })
        })
        .collect()
}
