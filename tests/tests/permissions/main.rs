//! Tests least privilege: every function has its own role, and its role allows what the function needs and
//! nothing else. The grants in the template are compared with a table of owners. Everything that the template
//! does not grant is requested with the role's own credentials and must be denied. Every grant must have been
//! used.

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
use calls::{Http, MARK};
use futures_util::{StreamExt, TryStreamExt, stream};
use grants::{Deployed, Grant, grants, matches, roles, services};
use owners::OWNERS;
use testkit::template::{Template, root};
use tests::{Stack, api::Call};

/// The session name of the requests that this test makes. Functions use another one.
const SESSION: &str = "permissions";

fn owner(service: &str, grant: &Grant) -> Option<usize> {
    OWNERS.iter().position(|may| {
        may.service == service
            && may.actions.contains(&grant.action.as_str())
            && may.resource == grant.on()
    })
}

#[test]
fn every_grant_is_in_the_table_of_owners() {
    let template = Template::read();
    let services = services();
    let mut not_owned = Vec::new();
    let mut had = BTreeSet::new();
    for grant in grants(&template) {
        match owner(&services[&grant.who], &grant) {
            Some(index) => drop(had.insert((index, grant.action.clone()))),
            None => not_owned.push(format!("{} may {} on {}", grant.who, grant.action, grant.on())),
        }
    }
    assert!(
        not_owned.is_empty(),
        "the template allows what the table of owners (tests/tests/permissions/owners.rs) does not: \
         {not_owned:#?}"
    );
    let granted = |index, action: &&str| had.contains(&(index, (*action).to_owned()));
    let left = OWNERS.iter().enumerate().flat_map(|(index, may)| {
        let left = may.actions.iter().filter(move |action| !granted(index, action));
        left.map(move |action| format!("{} may {action} on {}", may.service, may.resource))
    });
    assert_eq!(
        left.collect::<Vec<_>>(),
        Vec::<String>::new(),
        "the table has more than the template"
    );
}

#[test]
fn each_resource_belongs_to_one_service() {
    let mut owner_of = BTreeMap::new();
    for may in OWNERS.iter().filter(|may| may.why.is_empty()) {
        let owner = owner_of.entry(may.resource).or_insert(may.service);
        assert_eq!(*owner, may.service, "{} belongs to two", may.resource);
    }
}

#[tokio::test]
async fn actions_that_are_not_granted_are_denied_and_change_nothing() -> Result<()> {
    let (template, stack) = (Template::read(), Stack::connect().await?);
    let deployed = Deployed::of(&stack, &template).await?;
    let http = Http::to(&stack)?;
    let granted = grants(&template);
    let calls = calls::all(&template, &deployed);
    // Each action of a policy is requested with every other role. The exceptions need more than a request: a
    // task token, or calls that Step Functions and Lambda make internally.
    let asked: BTreeSet<_> = calls.iter().map(|call| call.action).collect();
    let never: BTreeSet<_> = granted
        .iter()
        .map(|grant| grant.action.as_str())
        .filter(|action| !asked.contains(action) && !action.starts_with("logs:"))
        .collect();
    let known = [
        "dynamodb:ListStreams",
        "events:DescribeRule",
        "events:PutRule",
        "events:PutTargets",
        "states:SendTaskFailure",
        "states:SendTaskHeartbeat",
        "states:SendTaskSuccess",
    ];
    assert_eq!(never.into_iter().collect::<Vec<_>>(), known, "not asked for");

    let mut asks = Vec::new();
    for (role, who) in roles(&template) {
        let credentials = calls::assume(&http, &deployed.role(&role, &who), SESSION).await?;
        let allowed = granted.iter().filter(|grant| grant.who == who);
        let allowed: Vec<_> =
            allowed.map(|grant| (&grant.action, deployed.arn(&grant.resource))).collect();
        for call in &calls {
            let may = |(action, arn): &(&String, String)| {
                *action == call.action && matches(arn, &call.arn)
            };
            if !allowed.iter().any(may) {
                asks.push((who.clone(), credentials.clone(), call));
            }
        }
    }
    let count = asks.len();
    let http = &http;
    let wrong: Vec<String> =
        stream::iter(asks)
            .map(|(who, credentials, call)| async move {
                let answer = call.send(http, credentials).await?;
                anyhow::Ok((!answer.denies(call.action)).then(|| {
                    format!("{who} asked for {} on {}: {answer:?}", call.action, call.arn)
                }))
            })
            .buffer_unordered(8)
            .try_filter_map(|wrong| async { Ok(wrong) })
            .try_collect()
            .await?;
    assert!(wrong.is_empty(), "{} of {count} were not denied: {wrong:#?}", wrong.len());
    // 30 functions and 2 state machines, with hundreds of denials each.
    assert!(count > 10_000, "{count}");
    nothing_is_changed(&stack, &template, &deployed).await
}

async fn nothing_is_changed(stack: &Stack, template: &Template, deployed: &Deployed) -> Result<()> {
    for (table, key) in calls::rows(template) {
        let key = key.as_object().expect("a key").iter().map(|(name, value)| {
            let value = match (&value["S"], &value["N"]) {
                (text, _) if text.is_string() => AttributeValue::S(MARK.into()),
                (_, number) => AttributeValue::N(number.as_str().expect("a number").into()),
            };
            (name.clone(), value)
        });
        let name = deployed.id(table);
        let row = stack.dynamodb().get_item().table_name(name).set_key(Some(key.collect())).send();
        assert!(row.await?.item().is_none(), "a row was written into {table}");
    }
    for queue in template.resources("AWS::SQS::Queue").into_keys() {
        let (waiting, _) = stack.depth(deployed.id(queue)).await?;
        assert_eq!(waiting, 0, "something was sent to {queue}");
    }
    for machine in template.resources("AWS::Serverless::StateMachine").into_keys() {
        let arn = deployed.id(machine);
        let execution = format!("{}:{MARK}", arn.replace(":stateMachine:", ":execution:"));
        let machines = aws_sdk_sfn::Client::new(stack.config());
        let found = machines.describe_execution().execution_arn(execution).send().await;
        assert!(found.is_err(), "{machine} was started");
        machines.describe_state_machine().state_machine_arn(arn).send().await?;
    }
    Ok(())
}

/// Uses a permission that no other route of the API needs.
#[tokio::test]
async fn sites_of_any_status_are_listed() -> Result<()> {
    let answer = Stack::connect().await?.call(Call::get("/sites?limit=1")).await?;
    assert_eq!(answer.status, 200, "{answer}");
    Ok(())
}

/// `UPDATE_DOCS=1 cargo test -p tests --test permissions documented` rewrites the table.
#[test]
fn the_documented_permissions_match_the_templates() {
    let template = Template::read();
    let services = services();
    let mut rows: BTreeMap<(String, String, String), BTreeSet<String>> = BTreeMap::new();
    for grant in grants(&template) {
        let row = (services[&grant.who].clone(), grant.who.clone(), grant.on());
        rows.entry(row).or_default().insert(grant.action);
    }
    let mut lines = vec!["| who | on | may |\n|---|---|---|\n".to_owned()];
    let mut before = String::new();
    for ((_, who, on), actions) in rows {
        let name = if who == before { "" } else { &who };
        let actions: Vec<_> = actions.iter().map(|action| format!("`{action}`")).collect();
        let on = on.replace('*', "\\*");
        lines.push(format!("| {name} | {on} | {} |\n", actions.join(", ")));
        before = who;
    }
    let expected = lines.concat();
    let path = root().join("docs/permissions.md");
    let text = fs::read_to_string(&path).expect("docs/permissions.md");
    let (start, end) = ("<!-- generated -->\n", "<!-- /generated -->\n");
    let (head, rest) = text.split_once(start).expect("a start");
    let (found, tail) = rest.split_once(end).expect("an end");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, [head, start, &expected, end, tail].concat())
            .expect("docs/permissions.md");
        return;
    }
    assert_eq!(expected, found, "docs/permissions.md differs; UPDATE_DOCS=1 rewrites it");
}

#[test]
fn every_reason_for_an_unused_grant_belongs_to_a_grant() {
    assert_eq!(used::idle_reasons(&grants(&Template::read())), Vec::<String>::new());
}

/// Runs after the other tests of the deployed stack: `make unused-grants`.
#[tokio::test]
#[ignore = "judges what the tests before have used"]
async fn every_grant_was_used_and_nothing_was_denied() -> Result<()> {
    used::judge(&Template::read(), &Stack::connect().await?).await
}
