//! Tests of the rate limits with simulated execution environments and clocks, on an embedded DynamoDB.

use contracts::{OperatorId, Plan, RateLimit, Timestamp};
use futures_util::future::join_all;
use limits::{Holder, LIFETIME_MILLIS, Limits, Refusal, Sender};
use serde_json::{Value, json};
use store::Table;
use testkit::{
    dynamo::{Dynamo, LIMITS},
    http::{NO_RESPONSE, Stub},
    measured::measured,
    sample::noon,
};

/// A plan with a rate of 20 requests per second and a burst of 200.
const SMALL: Plan = Plan::Standard;

fn fleet(dynamo: &Dynamo, environments: usize) -> Vec<Limits> {
    (0..environments).map(|_| Limits::new(dynamo.table(LIMITS))).collect()
}

/// Returns the limits of functions whose requests start sagas.
fn saga_fleet(dynamo: &Dynamo, environments: usize) -> Vec<Limits> {
    fleet(dynamo, environments).into_iter().map(Limits::of_sagas).collect()
}

fn operator(name: &str) -> OperatorId {
    OperatorId::registered(name)
}

fn sender(name: &str, plan: Plan) -> Sender<'static> {
    Sender { operator: operator(name), plan, logger_key: None, may_start_sagas: true }
}

/// Returns a time on the simulated clock.
fn at(millis: i64) -> Timestamp {
    noon(0).plus_millis(millis)
}

fn writes(dynamo: &Dynamo) -> u32 {
    let calls = dynamo.take_usage().calls;
    assert!(calls.keys().all(|call| call == "UpdateItem"), "{calls:?}");
    calls.values().sum()
}

async fn accepted(limits: &Limits, sender: Sender<'_>, now: Timestamp, requests: usize) -> usize {
    let mut accepted = 0;
    for _ in 0..requests {
        accepted += usize::from(limits.check(sender, now).await.is_ok());
    }
    accepted
}

async fn row(dynamo: &Dynamo, id: &str) -> Value {
    dynamo.row(LIMITS, id).await.expect("the row of the bucket")
}

/// Sends `per_second` requests per second for `seconds`, in turn to each environment, whose clock is ahead by `skew`
/// milliseconds. Returns the number of accepted requests.
async fn load(
    fleet: &[Limits],
    skew: impl Fn(usize) -> i64,
    sender: Sender<'_>,
    per_second: usize,
    seconds: usize,
) -> usize {
    let mut sum = 0;
    for request in 0..per_second * seconds {
        let millis = i64::try_from(1_000 * request / per_second).expect("a time");
        let environment = request % fleet.len();
        let now = at(millis + skew(environment));
        sum += usize::from(fleet[environment].check(sender, now).await.is_ok());
    }
    sum
}

#[tokio::test]
async fn an_operator_at_ten_times_its_rate_gets_its_rate_and_the_others_lose_nothing() {
    let dynamo = Dynamo::start().await;
    let fleet = fleet(&dynamo, 8);
    let (rate, burst) = (20, 200);
    let (seconds, greedy, modest) = (60, sender("greedy", SMALL), sender("modest", SMALL));
    let mut accepted = 0;
    let mut refused_while_modest = 0;
    for request in 0..10 * rate * seconds {
        let now = at(i64::try_from(1_000 * request / (10 * rate)).expect("a time"));
        let limits = &fleet[request % fleet.len()];
        let result = limits.check(greedy, now).await;
        accepted += usize::from(result.is_ok());
        // The modest operator sends at half of its rate.
        if request % 20 == 0 {
            assert_eq!(limits.check(modest, now).await, Ok(()));
            refused_while_modest += usize::from(result.is_err());
        }
    }
    assert!(accepted <= rate * seconds + burst + fleet.len(), "{accepted}");
    assert!(accepted >= rate * seconds, "{accepted}");
    assert!(refused_while_modest > 100, "{refused_while_modest}");
    // An exhausted bucket costs each environment at most three writes per second, however much it refuses.
    let writes = writes(&dynamo);
    assert!(writes <= 60 * 8 * 3, "{writes}");
}

#[tokio::test]
async fn a_full_bucket_has_exactly_its_burst() {
    let dynamo = Dynamo::start().await;
    for plan in Plan::ALL {
        let [limits] = &fleet(&dynamo, 1)[..] else { unreachable!() };
        let burst = usize::try_from(plan.rate_limit().burst()).expect("a size");
        let sender = sender(plan.name(), *plan);
        assert_eq!(accepted(limits, sender, at(0), burst + 50).await, burst, "{plan:?}");
        // The refusal ends after a second. Until then, the bucket gets the tokens of that second.
        let rate = usize::try_from(plan.rate_limit().per_second()).expect("a size");
        assert_eq!(accepted(limits, sender, at(1_000), burst).await, rate, "{plan:?}");
    }
}

#[tokio::test]
async fn a_busy_environment_writes_about_once_in_100_requests() {
    for (environments, per_second, plan) in
        [(1, 20, Plan::Standard), (1, 50, Plan::Professional), (4, 40, Plan::Professional)]
    {
        let dynamo = Dynamo::start().await;
        let fleet = fleet(&dynamo, environments);
        let sender = sender("steady", plan);
        let minute = async |minute: i64| {
            let accepted = load(&fleet, |_| 60_000 * minute, sender, per_second, 60).await;
            assert_eq!(accepted, 60 * per_second, "{plan:?}");
            f64::from(writes(&dynamo))
        };
        // The leases grow in the first minute, so its writes do not count.
        minute(0).await;
        let writes = minute(1).await + minute(2).await;
        let requests = u32::try_from(120 * per_second).expect("a number");
        let per_request = writes / f64::from(requests);
        assert!(per_request <= 0.02, "{plan:?}: {writes} writes for {requests} requests");
    }
}

#[tokio::test]
async fn a_refusal_is_remembered_and_costs_no_writes() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let sender = sender("greedy", SMALL);
    accepted(limits, sender, at(0), 200).await;
    let refusal = limits.check(sender, at(0)).await.expect_err("the bucket is empty");
    let expected = Refusal {
        of: Holder::Operator,
        limit: SMALL.rate_limit(),
        retry_after: 1,
        to_log: Some(1),
    };
    assert_eq!(refusal, expected);
    let _ = writes(&dynamo);
    for millis in 0..1_000 {
        let refusal = limits.check(sender, at(millis)).await.expect_err("it is remembered");
        assert_eq!((refusal.retry_after, refusal.to_log), (1, None));
    }
    assert_eq!(writes(&dynamo), 0);
    assert_eq!(limits.check(sender, at(1_000)).await, Ok(()));
    assert_eq!(writes(&dynamo), 1);
}

#[tokio::test]
async fn one_log_line_per_minute_reports_all_refusals() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let sender = sender("greedy", SMALL);
    accepted(limits, sender, at(0), 200).await;
    let mut lines = Vec::new();
    let mut refusals = 0;
    for second in 0..130 {
        for _ in 0..40 {
            if let Err(refusal) = limits.check(sender, at(1_000 * second)).await {
                refusals += 1;
                lines.extend(refusal.to_log);
            }
        }
    }
    let [first, second, third] = lines[..] else { panic!("{lines:?}") };
    assert_eq!(first, 1);
    assert!(second > 1_000 && third > 1_000 && first + second + third <= refusals, "{lines:?}");
}

#[tokio::test]
async fn two_environments_that_race_for_the_last_tokens_take_no_more_than_there_are() {
    for round in 0..20 {
        let dynamo = Dynamo::start().await;
        let fleet = fleet(&dynamo, 2);
        let id = format!("operator#{}", operator("racing"));
        let last = 3 + round % 5;
        let tat = at(0).millis() + 50 * (200 - last);
        dynamo.put(LIMITS, json!({ "id": id, "tat": tat, "expiresAt": 0 })).await;
        let sender = sender("racing", SMALL);
        let requests = fleet.iter().map(|limits| accepted(limits, sender, at(0), 20));
        let sum: usize = join_all(requests).await.into_iter().sum();
        // Each environment takes one token on credit. An environment that gets no lease does not pay for this token.
        let last = usize::try_from(last).expect("a number");
        assert!((last..=last + 2).contains(&sum), "{sum} of {last}");
        let tat = row(&dynamo, &id).await["tat"].as_i64().expect("a number");
        assert!(tat <= at(0).millis() + 10_000, "{tat}");
    }
}

#[tokio::test]
async fn concurrent_requests_of_one_environment_take_no_more_than_there_are() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let sender = sender("concurrent", SMALL);
    let id = format!("operator#{}", sender.operator);
    let tat = at(0).millis() + 50 * (200 - 8);
    dynamo.put(LIMITS, json!({ "id": id, "tat": tat, "expiresAt": 0 })).await;
    let requests = (0..10).map(|_| limits.check(sender, at(0)));
    let sum = join_all(requests).await.into_iter().flatten().count();
    assert!((4..=8).contains(&sum), "{sum}");
}

#[tokio::test]
async fn clocks_that_differ_by_two_seconds_change_little() {
    let (rate, burst, seconds) = (20, 200, 60);
    let skew = |environment| [-2_000, 0, 2_000][environment % 3];
    let dynamo = Dynamo::start().await;
    let environments = fleet(&dynamo, 3);
    let accepted = load(&environments, skew, sender("greedy", SMALL), 10 * rate, seconds).await;
    assert!(accepted >= rate * seconds, "{accepted}");
    assert!(accepted <= rate * seconds + burst + 2 * rate + environments.len(), "{accepted}");

    // Below the rate, nobody is refused.
    let sent = 15 * seconds;
    let accepted = load(&environments, skew, sender("modest", SMALL), 15, seconds).await;
    assert_eq!(accepted, sent);
}

#[tokio::test]
async fn many_idle_environments_do_not_hold_the_tokens_of_a_small_plan() {
    let dynamo = Dynamo::start().await;
    let environments = fleet(&dynamo, 60);
    let sender = sender("spread", SMALL);
    for limits in &environments {
        assert_eq!(accepted(limits, sender, at(0), 2).await, 2);
    }
    let other = &fleet(&dynamo, 1)[0];
    assert_eq!(accepted(other, sender, at(0), 200).await, 200 - 2 * environments.len());
}

#[tokio::test]
async fn what_is_left_of_a_lease_expires() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let sender = sender("idle", SMALL);
    // The first request is on credit. The second leases one token, and the third leases two.
    assert_eq!(accepted(limits, sender, at(0), 3).await, 3);
    assert_eq!(writes(&dynamo), 2);
    // The fourth request takes what is left, if it comes in time.
    assert_eq!(accepted(limits, sender, at(LIFETIME_MILLIS - 1), 1).await, 1);
    assert_eq!(writes(&dynamo), 0);
    // A new lease has two tokens. One of them is used, and the other expires.
    assert_eq!(accepted(limits, sender, at(LIFETIME_MILLIS - 1), 1).await, 1);
    assert_eq!(writes(&dynamo), 1);
    let later = at(3 * LIFETIME_MILLIS);
    assert_eq!(accepted(limits, sender, later, 2).await, 2);
    assert_eq!(writes(&dynamo), 1, "one request on credit, and one with a new lease");
}

#[tokio::test]
async fn a_logger_key_has_its_own_bucket() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let operator_only = sender("site owner", SMALL);
    let with_key = |key| Sender { logger_key: Some(key), ..operator_only };
    let limit = RateLimit::LOGGER_KEY;
    let burst = usize::try_from(limit.burst()).expect("a size");
    assert_eq!(accepted(limits, with_key("key:fsl_broken00"), at(0), 500).await, burst);
    let refusal = limits.check(with_key("key:fsl_broken00"), at(0)).await.expect_err("empty");
    assert_eq!((refusal.of, refusal.limit), (Holder::LoggerKey, limit));
    // The requests that the key's bucket refused took no tokens from the operator's bucket.
    assert_eq!(accepted(limits, operator_only, at(0), 40).await, 40);
    assert_eq!(accepted(limits, with_key("key:fsl_healthy0"), at(0), 100).await, 40);
    let refusal = limits.check(with_key("key:fsl_healthy0"), at(0)).await.expect_err("empty");
    assert_eq!(refusal.of, Holder::Operator);
    // Another operator's key with the same name has another bucket.
    let other = Sender { logger_key: Some("key:fsl_broken00"), ..sender("other", SMALL) };
    assert_eq!(limits.check(other, at(0)).await, Ok(()));
}

#[tokio::test]
async fn loggers_that_send_every_15_minutes_cost_no_writes() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    for second in (0..3_600).step_by(15) {
        let key = format!("key:fsl_{:08}", second / 15 % 60);
        let sender = Sender { logger_key: Some(&key), ..sender("network", SMALL) };
        assert_eq!(limits.check(sender, at(1_000 * second)).await, Ok(()));
    }
    assert_eq!(writes(&dynamo), 0);
}

#[tokio::test]
async fn a_row_expires_after_an_hour() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    accepted(limits, sender("idle", SMALL), at(0), 2).await;
    let row = row(&dynamo, &format!("operator#{}", operator("idle"))).await;
    assert_eq!(row["tat"], at(2 * 50).millis());
    assert_eq!(row["expiresAt"], at(10_000).seconds() + 3_600);
}

#[tokio::test]
async fn a_table_that_fails_allows_every_request_and_is_asked_once_a_second() {
    let throttled = json!({ "__type": "com.amazonaws#ProvisionedThroughputExceededException" });
    let denied = json!({ "__type": "com.amazonaws#AccessDeniedException" });
    for (status, body) in [(400, throttled), (400, denied), (500, json!({}))] {
        let stub = Stub::start(move |_| (status, body.clone())).await;
        let client = aws_sdk_dynamodb::Client::new(&stub.config());
        let limits = Limits::new(Table::new(client, "limits"));
        // The first request is on credit, so it needs no lease.
        assert_eq!(limits.check(sender("any", SMALL), at(0)).await, Ok(()));
        let requests = async {
            for millis in (0..3_000).step_by(10) {
                assert_eq!(limits.check(sender("any", SMALL), at(millis)).await, Ok(()));
            }
        };
        let ((), metrics) = measured(requests).await;
        assert_eq!(stub.take_calls().len(), 3);
        assert_eq!(metrics.get("RateLimitsUnavailable"), Some(&300.0));
    }
}

#[tokio::test]
async fn a_bucket_whose_row_changes_all_the_time_refuses_for_a_second() {
    let tat = at(0).millis().to_string();
    let conflict = json!({
        "__type": "com.amazonaws#ConditionalCheckFailedException",
        "Item": { "tat": { "N": tat } },
    });
    let stub = Stub::start(move |_| (400, conflict.clone())).await;
    let client = aws_sdk_dynamodb::Client::new(&stub.config());
    let limits = Limits::new(Table::new(client, "limits"));
    assert_eq!(accepted(&limits, sender("any", SMALL), at(0), 10).await, 1);
    let updates = stub.take_calls().len();
    assert!((2..=4).contains(&updates), "{updates}");
    assert_eq!(accepted(&limits, sender("any", SMALL), at(999), 10).await, 0);
    assert_eq!(stub.take_calls().len(), 0);
}

#[tokio::test]
async fn a_table_that_does_not_respond_delays_a_request_by_a_second() {
    let stub = Stub::start(|_| (NO_RESPONSE, json!({}))).await;
    let client = aws_sdk_dynamodb::Client::new(&stub.config());
    let limits = Limits::new(Table::new(client, "limits"));
    let start = std::time::Instant::now();
    assert_eq!(accepted(&limits, sender("any", SMALL), at(0), 100).await, 100);
    // The pause begins after the timeout of the lease.
    assert_eq!(accepted(&limits, sender("any", SMALL), at(1_900), 100).await, 100);
    let took = start.elapsed().as_millis();
    assert!((1_000..1_900).contains(&took), "{took} ms");
}

#[tokio::test]
async fn wrong_numbers_in_a_row_and_wrong_clocks_do_no_harm() {
    let dynamo = Dynamo::start().await;
    let id = format!("operator#{}", operator("any"));
    for tat in [json!(i64::MIN), json!(-1), json!(0), json!(i64::MAX), json!(1e30)] {
        dynamo.put(LIMITS, json!({ "id": id, "tat": tat, "expiresAt": 0 })).await;
        let limits = &fleet(&dynamo, 1)[0];
        assert_eq!(accepted(limits, sender("any", SMALL), at(0), 300).await, 200, "{tat}");
        let stored = row(&dynamo, &id).await["tat"].clone();
        assert_eq!(stored, at(10_000).millis(), "{tat}");
    }
    // With a clock that is years behind or ahead of the row, the empty bucket counts as full.
    let limits = &fleet(&dynamo, 1)[0];
    for clock in [i64::MAX, i64::MIN, 0, at(0).millis()] {
        let now = Timestamp::from_millis(clock);
        assert_eq!(accepted(limits, sender("any", SMALL), now, 300).await, 200, "{clock}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_forgets_refusals_and_leases() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let sender = sender("any", SMALL);
    assert_eq!(accepted(limits, sender, at(0), 300).await, 200);
    let hour = 3_600_000;
    assert_eq!(limits.check(sender, at(-hour)).await, Ok(()));
}

#[tokio::test]
async fn buckets_that_are_removed_from_memory_are_found_again_in_the_table() {
    let dynamo = Dynamo::start().await;
    let limits = &fleet(&dynamo, 1)[0];
    let greedy = sender("greedy", SMALL);
    assert_eq!(accepted(limits, greedy, at(0), 201).await, 200);
    for key in 0..2_500 {
        let key = format!("key:fsl_{key:08}");
        let sender = Sender { logger_key: Some(&key), ..sender("network", Plan::Professional) };
        limits.check(sender, at(0)).await.ok();
    }
    // Memory no longer has the refusal, so one request is accepted on credit. The table refuses the lease of the next.
    assert_eq!(accepted(limits, greedy, at(0), 100).await, 1);
}

/// The simulated duration of the tests of sagas, in seconds. It is short, because each accepted request costs writes.
const SAGA_SECONDS: u32 = 20;

/// Sends the requests of all senders to the environments in turn. An entry of `senders` is a sender and its requests
/// per second. Returns the results of each sender.
async fn load_of_sagas(
    fleet: &[Limits],
    senders: &[(Sender<'_>, u32)],
) -> Vec<Vec<Result<(), Refusal>>> {
    let mut requests = Vec::new();
    for (sender, (_, per_second)) in senders.iter().enumerate() {
        let count = i64::from(SAGA_SECONDS * per_second);
        requests
            .extend((0..count).map(|request| (1_000 * request / i64::from(*per_second), sender)));
    }
    requests.sort_unstable();
    let mut results = vec![Vec::new(); senders.len()];
    for (request, (millis, sender)) in requests.into_iter().enumerate() {
        let limits = &fleet[request % fleet.len()];
        results[sender].push(limits.check(senders[sender].0, at(millis)).await);
    }
    results
}

fn accepted_of(results: &[Result<(), Refusal>]) -> u32 {
    u32::try_from(results.iter().filter(|result| result.is_ok()).count()).expect("a number")
}

#[tokio::test]
async fn an_operator_at_ten_times_its_rate_of_sagas_gets_its_rate_and_the_others_lose_nothing() {
    for greedy in [operator("greedy"), OperatorId::DEFAULT] {
        let dynamo = Dynamo::start().await;
        let limit = RateLimit::sagas_of_operator(greedy);
        let greedy = Sender { operator: greedy, ..sender("greedy", Plan::Professional) };
        let (first, second) = (sender("first", SMALL), sender("second", Plan::Professional));
        // The others send at their own rate.
        let senders = [(greedy, 10 * limit.per_second()), (first, 2), (second, 2)];
        let results = load_of_sagas(&saga_fleet(&dynamo, 8), &senders).await;
        // There is no credit, so the number of environments adds nothing to the bound.
        let accepted = accepted_of(&results[0]);
        let rate = SAGA_SECONDS * limit.per_second();
        assert!((rate..=rate + limit.burst()).contains(&accepted), "{accepted}");
        for result in &results[0] {
            let of = result.err().map(|refusal| (refusal.of, refusal.limit));
            assert!(of.is_none_or(|of| of == (Holder::OperatorSagas, limit)), "{of:?}");
        }
        for others in &results[1..] {
            assert!(others.iter().all(Result::is_ok), "{others:?}");
        }
        // An accepted request costs two to four writes. An environment remembers a refusal for at least a second.
        let writes = writes(&dynamo);
        let accepted: u32 = results.iter().map(|results| accepted_of(results)).sum();
        assert!(writes <= 4 * accepted + 8 * SAGA_SECONDS, "{writes} for {accepted}");
    }
}

#[tokio::test]
async fn all_operators_together_start_no_more_sagas_than_their_limit() {
    let dynamo = Dynamo::start().await;
    let fleet = saga_fleet(&dynamo, 8);
    let names: Vec<_> = (0..20).map(|number| format!("operator {number}")).collect();
    // No operator sends more than its own limit. Together they send four times the limit of all.
    let senders: Vec<_> = names.iter().map(|name| (sender(name, SMALL), 2)).collect();
    let results = load_of_sagas(&fleet, &senders).await;
    let limit = RateLimit::ALL_SAGAS;
    let of_each: Vec<_> = results.iter().map(|results| accepted_of(results)).collect();
    let sum: u32 = of_each.iter().sum();
    let rate = SAGA_SECONDS * limit.per_second();
    assert!((rate..=rate + limit.burst()).contains(&sum), "{sum}");
    for refusal in results.iter().flatten().filter_map(|result| result.err()) {
        assert_eq!((refusal.of, refusal.limit), (Holder::AllSagas, limit));
    }
    // Each operator gets at least half of an equal share.
    assert!(of_each.iter().all(|accepted| *accepted >= sum / 40), "{of_each:?}");
}

#[tokio::test]
async fn each_accepted_start_of_a_saga_takes_a_token_from_the_row_and_a_refused_one_takes_none() {
    let dynamo = Dynamo::start().await;
    let who = sender("greedy", SMALL);
    let limit = RateLimit::sagas_of_operator(who.operator);
    let burst = usize::try_from(limit.burst()).expect("a size");
    // Each request reaches an environment that knows nothing about the bucket.
    for limits in saga_fleet(&dynamo, burst) {
        assert_eq!(limits.check(who, at(0)).await, Ok(()));
    }
    for limits in saga_fleet(&dynamo, 20) {
        let refusal = limits.check(who, at(0)).await.expect_err("the bucket is empty");
        assert_eq!(refusal.of, Holder::OperatorSagas);
    }
    let tat = async |id: &str| row(&dynamo, id).await["tat"].clone();
    let used = i64::from(limit.burst());
    let own = at(used * limit.interval_millis()).millis();
    assert_eq!(tat(&format!("sagas#{}", who.operator)).await, own);
    let all = at(used * RateLimit::ALL_SAGAS.interval_millis()).millis();
    assert_eq!(tat("sagas#all").await, all);
    // Other requests of the operator take no tokens of sagas.
    assert_eq!(accepted(&fleet(&dynamo, 1)[0], who, at(0), 50).await, 50);
}

/// Checks the number of write units that `docs/cost.md` states.
#[tokio::test]
async fn a_call_that_starts_a_saga_costs_two_to_four_write_units() {
    let dynamo = Dynamo::start().await;
    let who = sender("any", SMALL);
    let mut units = Vec::new();
    for limits in saga_fleet(&dynamo, 2) {
        for second in 0..5 {
            assert_eq!(limits.check(who, at(1_000 * second)).await, Ok(()));
            units.push(dynamo.take_usage().write_units);
        }
    }
    // There is one update for each of the two buckets of sagas. There is a further update if the operator's other
    // bucket needs a lease, or if the first update of a bucket was refused, because the environment did not know its
    // state.
    assert!(units.iter().all(|units| (2.0..=4.0).contains(units)), "{units:?}");
    assert!(units.contains(&2.0), "{units:?}");
}

#[tokio::test]
async fn a_caller_that_may_not_start_sagas_takes_no_tokens_of_them() {
    let dynamo = Dynamo::start().await;
    let limits = &saga_fleet(&dynamo, 1)[0];
    let reader = Sender { may_start_sagas: false, ..sender("any", SMALL) };
    assert_eq!(accepted(limits, reader, at(0), 100).await, 100);
    let writer = sender("any", SMALL);
    let burst = RateLimit::sagas_of_operator(writer.operator).burst();
    let accepted = accepted(limits, writer, at(0), 100).await;
    assert_eq!(u32::try_from(accepted), Ok(burst));
}
