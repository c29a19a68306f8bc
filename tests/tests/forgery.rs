//! Tests forged billing commands on the deployed queues: only a command's state machine may send them, and a
//! forged one that arrives anyway changes nothing and is recorded as a failure. Also tests the reconciliation
//! that would find a subscription that was cancelled or opened without a command.

#[path = "disruptions/faults.rs"]
#[expect(dead_code, reason = "this binary does not use every fault")]
mod faults;

use anyhow::{Context, Result, ensure};
use aws_credential_types::Credentials;
use contracts::{Metric, OnboardingId, OperatorId, SiteId, names};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tests::{
    Stack,
    api::sign,
    sites::{GOOD_CARD, Ids, registration},
    stripe::{BillingObjects, billing_objects},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::faults::VisibilityTimeout;

/// The tests change the visibility timeout of queues, which affects the whole stack, so they run one at a time.
static STACK_LOCK: Mutex<()> = Mutex::const_new(());

/// The queues, each with the state machine whose role may send to it.
const QUEUES: [(&str, &str); 2] = [
    (names::CANCEL_SUBSCRIPTION, "SiteTeardownRole"),
    (names::INITIALIZE_SUBSCRIPTION, "SiteOnboardingRole"),
];

/// Calls a service with the credentials of a developer of the local stack.
async fn call(stack: &Stack, service: &str, path: &str, body: String) -> Result<String> {
    let url = stack.endpoint().join(path)?;
    let client = reqwest::Client::new();
    let mut request = client
        .post(url)
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(body.clone())
        .build()?;
    sign(&mut request, service, body.as_bytes())?;
    let response = client.execute(request).await?;
    let (status, text) = (response.status(), response.text().await?);
    ensure!(status.is_success(), "{service} returned {status}: {text}");
    Ok(text)
}

/// Returns an SQS client with the credentials of this role.
async fn sqs_as(stack: &Stack, role: &str) -> Result<aws_sdk_sqs::Client> {
    let role = stack.physical_id(role).await?;
    let assume = format!(
        "Action=AssumeRole&Version=2011-06-15&RoleSessionName=forgery\
         &RoleArn=arn%3Aaws%3Aiam%3A%3A000000000000%3Arole%2F{role}"
    );
    let response = call(stack, "sts", "/", assume).await?;
    let member = |name: &str| {
        let (_, rest) = response.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(value, _)| value.to_owned())
    };
    let credentials = Credentials::new(
        member("AccessKeyId").context("the response has no AccessKeyId")?,
        member("SecretAccessKey").context("the response has no SecretAccessKey")?,
        member("SessionToken"),
        None,
        "the role",
    );
    let config = aws_sdk_sqs::config::Builder::from(stack.config());
    Ok(aws_sdk_sqs::Client::from_conf(config.credentials_provider(credentials).build()))
}

async fn live_site(stack: &Stack, name: &str) -> Result<(Ids, BillingObjects)> {
    stack.deliver(&[Metric::AirTemperature], 1).await?;
    let registration = registration(name, &[Metric::AirTemperature], GOOD_CARD);
    let ids = stack.register(&Uuid::new_v4().to_string(), &registration).await?;
    stack.wait_until_active(ids.site_id).await?;
    let objects = billing_objects(stack, &ids.onboarding_id.to_string()).await?;
    ensure!(objects.subscriptions.len() == 1, "{objects:?}");
    Ok((ids, objects))
}

fn command(ids: Ids) -> Value {
    json!({ "onboardingId": ids.onboarding_id, "siteId": ids.site_id, "causationId": null })
}

#[tokio::test]
async fn forged_commands_change_nothing_and_are_recorded() -> Result<()> {
    let _lock = STACK_LOCK.lock().await;
    let stack = Stack::connect().await?;
    let (ids, before) = live_site(&stack, "target of a forgery").await?;
    let onboarding = stack.onboarding_arn(ids.onboarding_id)?;
    let site_id = SiteId::registered(OperatorId::DEFAULT, "forgery", &Uuid::new_v4().to_string());
    let unregistered = Ids { site_id, onboarding_id: OnboardingId::from_site(site_id) };
    let mut opening = command(unregistered);
    opening["name"] = "never registered".into();
    opening["plan"] = "standard".into();
    opening["paymentMethod"] = GOOD_CARD.into();
    let token = || Uuid::new_v4().to_string();
    let forged = [
        ("cancel-subscription", json!({ "taskToken": token(), "command": command(ids) })),
        (
            "cancel-subscription",
            json!({ "taskToken": token(), "execution": onboarding, "command": command(ids) }),
        ),
        ("initialize-subscription", json!({ "taskToken": token(), "command": opening })),
        (
            "initialize-subscription",
            json!({ "taskToken": token(), "execution": onboarding, "command": opening }),
        ),
    ];

    for (queue, _) in QUEUES {
        let url = stack.queue_url(queue).await?;
        let sent = stack.sqs().send_message().queue_url(url).message_body("{}").send().await;
        let error = sent.err().with_context(|| format!("a developer may send to {queue}"))?;
        ensure!(format!("{error:?}").contains("AccessDenied"), "{queue}: {error:?}");
    }

    // The queue policy can't prevent a message that is sent with the state machine's role.
    let mut visibilities = Vec::new();
    for (queue, _) in QUEUES {
        visibilities.push(VisibilityTimeout::set(&stack, queue, 2).await?);
    }
    let recorded = async {
        let mut failures = Vec::new();
        for (source, message) in &forged {
            let (queue, role) = QUEUES[usize::from(*source == "initialize-subscription")];
            let queue = stack.queue_url(queue).await?;
            let sqs = sqs_as(&stack, role).await?;
            sqs.send_message().queue_url(queue).message_body(message.to_string()).send().await?;
            let token = message["taskToken"].as_str().context("a message without a task token")?;
            failures.push((message, stack.failure_about(source, token).await?));
        }
        anyhow::Ok(failures)
    };
    let recorded = recorded.await;
    for visibility in visibilities {
        visibility.restore(&stack).await?;
    }
    let recorded = recorded?;
    for (message, failure) in &recorded {
        assert_eq!(failure.kind, "DEAD_LETTER", "{failure}");
        assert_eq!(failure.payload()?, **message, "incomplete payload");
        // A replay calls the function, which refuses the command again and reports it immediately. fieldctl does not
        // even send a cancellation for a site in service.
        if failure.source == "initialize-subscription" {
            let outcomes = stack.replay(&[&failure.id])?;
            assert_eq!(outcomes[&failure.id], "FAILED", "{outcomes:?}");
        }
        stack.fieldctl_failures(&["discard", &failure.id, "--note", "forged", "--yes"])?;
    }

    assert_eq!(
        billing_objects(&stack, &ids.onboarding_id.to_string()).await?,
        before,
        "a forged command had an effect"
    );
    let site = stack.site(ids.site_id).await?;
    assert_eq!(site.body["status"], "ACTIVE", "{site}");
    let row = stack.rows_with(names::BILLING, "siteId", &ids.site_id.to_string()).await?;
    assert_eq!((row.len(), &row[0]["status"]), (1, &json!("ACTIVE")), "{row:?}");
    let opened = billing_objects(&stack, &unregistered.onboarding_id.to_string()).await?;
    assert_eq!(
        opened,
        BillingObjects::default(),
        "a subscription was opened for an unregistered site"
    );
    Ok(())
}

#[tokio::test]
async fn the_provider_and_the_rows_are_compared() -> Result<()> {
    let stack = Stack::connect().await?;
    live_site(&stack, "compared").await?;
    let function = stack.named("reconcile-subscriptions");
    let event = testkit::sample::event("reconcile-subscriptions").to_string();
    let path = format!("/2015-03-31/functions/{function}:live/invocations");
    let response: Value = serde_json::from_str(&call(&stack, "lambda", &path, event).await?)?;
    assert!(response["running"].as_u64() > Some(0), "{response}");
    assert!(response["active"].as_u64() > Some(0), "{response}");
    let rows = stack.rows_with(names::BILLING, "id", "reconciliation#provider").await?;
    let report = rows.first().context("no report was stored")?;
    assert_eq!(report["found"], response["found"], "{report}");
    Ok(())
}
