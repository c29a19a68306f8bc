//! Tests least privilege: every function has its own role, which allows only what the function needs. The grants in the
//! template are compared with a table of owners. With the credentials of each role, the tests request every action that
//! the template does not grant to the role, and each request must be denied. Every grant must have been used.

mod calls;
mod grants;
mod owners;
mod used;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::Result;
use aws_sdk_dynamodb::types::AttributeValue;
use calls::{Http, MARKER};
use contracts::OperatorId;
use futures_util::{StreamExt, TryStreamExt, stream};
use grants::{Deployed, Grant, grants, matches, roles, services};
use owners::OWNERS;
use testkit::template::{Template, root};
use tests::{Stack, api::Call};

/// The session name of the requests that this test makes. Functions use another one.
const SESSION: &str = "permissions";

fn owner(service: &str, grant: &Grant) -> Option<usize> {
    OWNERS.iter().position(|allowed| {
        allowed.service == service
            && allowed.actions.contains(&grant.action.as_str())
            && allowed.resource == grant.resource_name()
    })
}

#[test]
fn every_grant_is_in_the_table_of_owners() {
    let template = Template::read();
    let services = services();
    let mut not_owned = Vec::new();
    let mut granted = BTreeSet::new();
    for grant in grants(&template) {
        match owner(&services[&grant.grantee], &grant) {
            Some(index) => drop(granted.insert((index, grant.action.clone()))),
            None => not_owned.push(format!(
                "{} has {} on {}",
                grant.grantee,
                grant.action,
                grant.resource_name()
            )),
        }
    }
    assert!(
        not_owned.is_empty(),
        "grants of the template that are not in the table of owners \
         (tests/tests/permissions/owners.rs): {not_owned:#?}"
    );
    let is_granted = |index, action: &&str| granted.contains(&(index, (*action).to_owned()));
    let unused = OWNERS.iter().enumerate().flat_map(|(index, allowed)| {
        let unused = allowed.actions.iter().filter(move |action| !is_granted(index, action));
        unused
            .map(move |action| format!("{} has {action} on {}", allowed.service, allowed.resource))
    });
    assert_eq!(
        unused.collect::<Vec<_>>(),
        Vec::<String>::new(),
        "entries of the table of owners that no grant of the template uses"
    );
}

#[test]
fn each_resource_belongs_to_one_service() {
    let mut owner_of = BTreeMap::new();
    for allowed in OWNERS.iter().filter(|allowed| allowed.reason.is_empty()) {
        let owner = owner_of.entry(allowed.resource).or_insert(allowed.service);
        assert_eq!(*owner, allowed.service, "{} has two owners", allowed.resource);
    }
}

#[tokio::test]
async fn actions_that_are_not_granted_are_denied_and_change_nothing() -> Result<()> {
    let (template, stack) = (Template::read(), Stack::connect().await?);
    let deployed = Deployed::read(&stack, &template).await?;
    let http = Http::new(&stack)?;
    let granted = grants(&template);
    let calls = calls::all(&template, &deployed);
    // Each action in a policy is requested with every role that does not have it. The exceptions can't be tested with a
    // request: they need a task token, or are actions that only Step Functions and Lambda use.
    let requested: BTreeSet<_> = calls.iter().map(|call| call.action).collect();
    let not_requested: BTreeSet<_> = granted
        .iter()
        .map(|grant| grant.action.as_str())
        .filter(|action| !requested.contains(action) && !action.starts_with("logs:"))
        .collect();
    let exceptions = [
        "dynamodb:ListStreams",
        "events:DescribeRule",
        "events:PutRule",
        "events:PutTargets",
        "states:SendTaskFailure",
        "states:SendTaskHeartbeat",
        "states:SendTaskSuccess",
    ];
    assert_eq!(
        not_requested.into_iter().collect::<Vec<_>>(),
        exceptions,
        "granted actions that this test does not request"
    );

    let mut requests = Vec::new();
    for (role, grantee) in roles(&template) {
        let credentials = calls::assume(&http, &deployed.role(&role, &grantee), SESSION).await?;
        let allowed = granted.iter().filter(|grant| grant.grantee == grantee);
        let allowed: Vec<_> =
            allowed.map(|grant| (&grant.action, deployed.arn(&grant.resource))).collect();
        for call in &calls {
            let is_match = |(action, arn): &(&String, String)| {
                *action == call.action && matches(arn, &call.arn)
            };
            if !allowed.iter().any(is_match) {
                requests.push((grantee.clone(), credentials.clone(), call));
            }
        }
    }
    let count = requests.len();
    let http = &http;
    let not_denied: Vec<String> = stream::iter(requests)
        .map(|(grantee, credentials, call)| async move {
            let response = call.send(http, credentials).await?;
            anyhow::Ok((!response.denies(call.action)).then(|| {
                format!("{grantee} requested {} on {}: {response:?}", call.action, call.arn)
            }))
        })
        .buffer_unordered(8)
        .try_filter_map(|it| async { Ok(it) })
        .try_collect()
        .await?;
    assert!(
        not_denied.is_empty(),
        "{} of {count} requests were not denied: {not_denied:#?}",
        not_denied.len()
    );
    // There are dozens of functions and two state machines. Each role has hundreds of denials.
    assert!(count > 10_000, "only {count} requests");
    assert_unchanged(&stack, &template, &deployed).await
}

async fn assert_unchanged(stack: &Stack, template: &Template, deployed: &Deployed) -> Result<()> {
    for (table, key) in calls::rows(template) {
        let key = key.as_object().expect("a key is an object").iter().map(|(name, value)| {
            let value = match (&value["S"], &value["N"]) {
                (text, _) if text.is_string() => AttributeValue::S(MARKER.into()),
                (_, number) => AttributeValue::N(
                    number.as_str().expect("a key is a string or a number").into(),
                ),
            };
            (name.clone(), value)
        });
        let name = deployed.id(table);
        let row = stack.dynamodb().get_item().table_name(name).set_key(Some(key.collect())).send();
        assert!(row.await?.item().is_none(), "a row was written into {table}");
    }
    for queue in template.resources("AWS::SQS::Queue").into_keys() {
        let (visible, _) = stack.queue_depth(deployed.id(queue)).await?;
        assert_eq!(visible, 0, "a message was sent to {queue}");
    }
    for machine in template.resources("AWS::Serverless::StateMachine").into_keys() {
        let arn = deployed.id(machine);
        let execution = format!("{}:{MARKER}", arn.replace(":stateMachine:", ":execution:"));
        let client = aws_sdk_sfn::Client::new(stack.config());
        let found = client.describe_execution().execution_arn(execution).send().await;
        assert!(found.is_err(), "{machine} was started");
        client.describe_state_machine().state_machine_arn(arn).send().await?;
    }
    Ok(())
}

/// Uses a permission that no other route of the API needs.
#[tokio::test]
async fn sites_of_any_status_are_listed() -> Result<()> {
    let response = Stack::connect().await?.call(Call::get("/sites?limit=1")).await?;
    assert_eq!(response.status, 200, "{response}");
    Ok(())
}

/// Uses permissions to write the audit trail that only a request for another operator needs.
#[tokio::test]
async fn an_administrator_reads_the_keys_and_the_audit_trail_of_another_operator() -> Result<()> {
    let stack = Stack::connect().await?;
    let operator = OperatorId::registered("permissions");
    for list in ["keys", "audit"] {
        let response = stack.call(Call::get(format!("/{list}?operatorId={operator}"))).await?;
        assert_eq!(response.status, 200, "{list}: {response}");
    }
    Ok(())
}

/// `UPDATE_DOCS=1 cargo test -p tests --test permissions documented` rewrites the table.
#[test]
fn the_documented_permissions_match_the_templates() {
    let template = Template::read();
    let services = services();
    let mut rows: BTreeMap<(String, String, String), BTreeSet<String>> = BTreeMap::new();
    for grant in grants(&template) {
        let row = (services[&grant.grantee].clone(), grant.grantee.clone(), grant.resource_name());
        rows.entry(row).or_default().insert(grant.action);
    }
    let mut lines =
        vec!["| function or state machine | resource | actions |\n|---|---|---|\n".to_owned()];
    let mut before = String::new();
    for ((_, grantee, resource), actions) in rows {
        let name = if grantee == before { "" } else { &grantee };
        let actions: Vec<_> = actions.iter().map(|action| format!("`{action}`")).collect();
        let resource = resource.replace('*', "\\*");
        lines.push(format!("| {name} | {resource} | {} |\n", actions.join(", ")));
        before = grantee;
    }
    let expected = lines.concat();
    let path = root().join("docs/permissions.md");
    let text = fs::read_to_string(&path).expect("docs/permissions.md");
    let (start, end) = ("<!-- generated -->\n", "<!-- /generated -->\n");
    let (head, rest) = text.split_once(start).expect("docs/permissions.md has the start marker");
    let (found, tail) = rest.split_once(end).expect("docs/permissions.md has the end marker");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [head, start, &expected, end, tail].concat())
            .expect("docs/permissions.md");
        return;
    }
    assert_eq!(expected, found, "docs/permissions.md is outdated; UPDATE_DOCS=1 rewrites it");
}

#[test]
fn every_reason_for_an_unused_grant_belongs_to_a_grant() {
    assert_eq!(used::obsolete_reasons(&grants(&Template::read())), Vec::<String>::new());
}

/// Runs after all other tests of the deployed stack: `make unused-grants`.
#[tokio::test]
#[ignore = "checks what the earlier tests have used; run by `make unused-grants`"]
async fn every_grant_was_used_and_nothing_was_denied() -> Result<()> {
    used::check(&Template::read(), &Stack::connect().await?).await
}
