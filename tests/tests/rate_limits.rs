//! One operator sends ten times what it may send, and another one notices nothing. `make rate-limit-test` runs these tests on
//! a fresh local stack, because they need the machine for themselves.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use contracts::{OperatorId, Plan, RateLimit, Scope};
use futures_util::future::try_join_all;
use reqwest::Method;
use serde_json::json;
use tests::{Stack, api::Call};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};
use uuid::Uuid;

/// How long each of the two measurements takes.
const DURATION: Duration = Duration::from_secs(20);
/// The requests per second of the operator that stays below its limit.
const QUIET_RATE: u32 = 4;
/// The number of clients of the operator that exceeds its limit. It is small, because the emulator starts a process for
/// each concurrent request.
const SENDERS: u32 = 10;
/// The minimum rate of the flood, in multiples of the operator's limit. It tries to send at ten times the limit.
const MIN_FLOOD: u32 = 8;
/// The maximum ratio of two 95th percentiles of the other operator's response times: during the flood, and without it.
const MAX_RATIO: f64 = 1.5;

/// Creates an operator with the smallest plan. Returns a key of it with this scope.
async fn operator(stack: &Stack, scope: Scope) -> Result<String> {
    let post = |path: &str, body: serde_json::Value| {
        Call::new(Method::POST, path).key(&Uuid::new_v4().to_string()).text(body.to_string())
    };
    let body = json!({ "name": "Rate limits", "plan": Plan::Community });
    let created = stack.call(post("/operators", body)).await?;
    let operator = created.body["operatorId"].as_str().context("no operator")?.to_owned();
    let body = json!({ "name": "Rate limits", "scope": scope, "operatorId": operator });
    let created = stack.call(post("/keys", body)).await?;
    Ok(created.body["key"].as_str().context("no key")?.to_owned())
}

/// Sends a request at each tick, and after the response to the request before. Returns the status and the duration of
/// each.
async fn send(
    stack: &Stack,
    call: &Call,
    key: &str,
    mut ticks: Interval,
    until: Instant,
) -> Result<Vec<(u16, Duration)>> {
    let mut responses = Vec::new();
    while Instant::now() < until {
        ticks.tick().await;
        let call = call.clone().bearing(key);
        let start = Instant::now();
        responses.push((stack.call(call).await?.status, start.elapsed()));
    }
    Ok(responses)
}

/// Returns the ticks of a sender that stays below its limit. It skips the ticks that it missed.
fn quiet_ticks(rate: u32) -> Interval {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

/// Sends requests at ten times a limit, in equal intervals, until this time. Senders whose responses were late catch up.
async fn flood(
    stack: &Stack,
    call: &Call,
    key: &str,
    limit: RateLimit,
    until: Instant,
) -> Result<Vec<(u16, Duration)>> {
    let gap = Duration::from_secs(1) / (limit.per_second() * 10);
    let start = Instant::now();
    let senders = (0..SENDERS).map(|sender| {
        let mut ticks = interval_at(start + gap * sender, gap * SENDERS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        send(stack, call, key, ticks, until)
    });
    Ok(try_join_all(senders).await?.concat())
}

/// Checks that the flood was far above the limit.
#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn check_flood(responses: &[(u16, Duration)], limit: RateLimit) -> Result<()> {
    let seconds = u32::try_from(DURATION.as_secs())?;
    let expected = usize::try_from(MIN_FLOOD * limit.per_second() * seconds)?;
    let sent = responses.len();
    println!("the flood: {sent} requests in {DURATION:?}, at least {expected} are required");
    ensure!(sent >= expected, "the flood was too slow: {sent} requests, required are {expected}");
    Ok(())
}

fn p95(responses: &[(u16, Duration)]) -> Duration {
    let mut times: Vec<_> = responses.iter().map(|(_, time)| *time).collect();
    times.sort_unstable();
    times[times.len() * 95 / 100]
}

fn statuses(responses: &[(u16, Duration)]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for (status, _) in responses {
        *counts.entry(*status).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the machine for itself: make rate-limit-test"]
#[expect(clippy::print_stdout, reason = "the figures are the result")]
async fn an_operator_at_ten_times_its_rate_disturbs_no_other() -> Result<()> {
    let stack = Stack::connect().await?;
    let (quiet, loud) =
        (operator(&stack, Scope::Read).await?, operator(&stack, Scope::Read).await?);
    let call = Call::get("/sites?status=ACTIVE&limit=1");
    let quiet_calls =
        async |until: Instant| send(&stack, &call, &quiet, quiet_ticks(QUIET_RATE), until).await;
    // The first calls start the functions and fill the authorizer's cache.
    quiet_calls(Instant::now() + Duration::from_secs(5)).await?;
    let alone = quiet_calls(Instant::now() + DURATION).await?;

    let limit = Plan::Community.rate_limit();
    let until = Instant::now() + DURATION;
    let (disturbed, loud_responses) =
        tokio::try_join!(quiet_calls(until), flood(&stack, &call, &loud, limit, until))?;

    let (before, during) = (p95(&alone), p95(&disturbed));
    let ratio = during.as_secs_f64() / before.as_secs_f64();
    println!("the other operator alone: {:?}, p95 {before:?}", statuses(&alone));
    println!("the other operator beside the flood: {:?}, p95 {during:?}", statuses(&disturbed));
    println!(
        "the flood: {:?} in {DURATION:?}; ratio of the p95s: {ratio:.2}",
        statuses(&loud_responses)
    );

    check_flood(&loud_responses, limit)?;
    ensure!(statuses(&alone).keys().eq([&200]) && statuses(&disturbed).keys().eq([&200]));
    let accepted = statuses(&loud_responses).get(&200).copied().unwrap_or_default();
    // The bucket was full, and each environment of the function may take one token on credit.
    let seconds = u32::try_from(DURATION.as_secs())?;
    let allowed = limit.burst() + limit.per_second() * seconds;
    let allowed = usize::try_from(allowed)?;
    ensure!(
        accepted <= allowed + allowed / 5,
        "{accepted} requests were accepted, allowed were {allowed}"
    );
    ensure!(statuses(&loud_responses).contains_key(&429), "nothing was refused");
    ensure!(ratio <= MAX_RATIO, "the 95th percentile grew by {ratio:.2}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the machine for itself: make rate-limit-test"]
#[expect(clippy::print_stdout, reason = "the figures are the result")]
async fn an_operator_at_ten_times_its_rate_of_sagas_is_refused_alone() -> Result<()> {
    let stack = Stack::connect().await?;
    let key = async || operator(&stack, Scope::Operator).await;
    let (quiet, loud) = (key().await?, key().await?);
    // The site does not exist, so nothing is started, but the request takes its tokens.
    let call = Call::delete(format!("/sites/{}", Uuid::new_v4()));
    // Each operator but the default one has this limit.
    let limit = RateLimit::sagas_of_operator(OperatorId::registered("any"));
    let until = Instant::now() + DURATION;
    let (quiet_responses, loud_responses) = tokio::try_join!(
        send(&stack, &call, &quiet, quiet_ticks(1), until),
        flood(&stack, &call, &loud, limit, until)
    )?;

    check_flood(&loud_responses, limit)?;
    let loud_responses = statuses(&loud_responses);
    println!("the other operator: {:?}", statuses(&quiet_responses));
    println!("the flood: {loud_responses:?} in {DURATION:?}");
    ensure!(statuses(&quiet_responses).keys().eq([&404]), "the other operator was refused");
    let accepted = loud_responses.get(&404).copied().unwrap_or_default();
    // The last requests may end a second later.
    let seconds = u32::try_from(DURATION.as_secs())? + 1;
    let allowed = usize::try_from(limit.burst() + limit.per_second() * seconds)?;
    ensure!(accepted <= allowed, "{accepted} requests were accepted, allowed were {allowed}");
    ensure!(loud_responses.contains_key(&429), "nothing was refused");
    Ok(())
}
