//! Tests of `GET /network/summary` with requests and responses in API Gateway's format.

mod support;

use std::{collections::BTreeMap, time::Duration};

use contracts::{OperatorId, Scope, SiteId, replay::Rebuild};
use lambda::{
    Deadline,
    http::{Request, response},
};
use network::get_summary::GetSummary;
use serde_json::{Value, json};
use support::watch_network;
use testkit::{
    cloud::{self, Cloud},
    consuming::{EventConsumer, append, batch, event, history},
    dynamo::NETWORK,
    golden,
    rng::Rng,
    sample::{self, caller, noon, other_operator},
};

const TIME: Duration = Duration::from_secs(29);

fn request(query: &[(&str, &str)]) -> Request {
    let mut event = sample::event("get-summary");
    for (name, value) in query {
        event["queryStringParameters"][name] = (*value).into();
        event["multiValueQueryStringParameters"][name] = json!([value]);
    }
    serde_json::from_value(event).expect("an event of API Gateway")
}

/// Returns the response to a request that is sent two days after `noon(0)`, with the body parsed as JSON.
async fn get(cloud: &Cloud, operator: OperatorId, scope: Scope, query: &[(&str, &str)]) -> Value {
    let step = GetSummary { network: cloud.table(NETWORK) };
    let now = noon(2 * 24 * 60 * 60);
    let result = step.handle(&caller(operator, scope), &request(query), now).await;
    let mut sent = serde_json::to_value(response(result)).expect("a response as JSON");
    let body = sent["body"].as_str().expect("a body");
    sent["body"] = serde_json::from_str(body).expect("a body of JSON");
    sent
}

fn check(name: &str, sent: &Value) {
    let shown = json!({ "statusCode": sent["statusCode"], "body": sent["body"] });
    golden::check(env!("CARGO_MANIFEST_DIR"), name, &shown);
}

async fn counted() -> Cloud {
    let cloud = Cloud::new(Rng::from_seed(1));
    let events = history();
    for event in &events {
        append(&cloud, event);
    }
    watch_network(&cloud).handle(&batch(&events), TIME).await.expect("a response");
    cloud
}

#[test]
fn get_summary_counts_the_sites_and_events_of_the_callers_operator() {
    cloud::run(async {
        let cloud = counted().await;
        let own = OperatorId::DEFAULT;
        let sent = get(&cloud, own, Scope::Read, &[]).await;
        check("get-summary.counts", &sent);
        assert_eq!(sent["body"]["events"].as_array().map(Vec::len), Some(7));
        let days = [("from", "2026-01-01"), ("to", "2026-01-02")];
        check("get-summary.days", &get(&cloud, own, Scope::Operator, &days).await);
        check("get-summary.other", &get(&cloud, other_operator(), Scope::Read, &days).await);
        let nobody = OperatorId::registered("nobody");
        check("get-summary.none", &get(&cloud, nobody, Scope::Read, &days[1..]).await);
    });
}

#[test]
fn get_summary_refuses_wrong_days_and_scopes() {
    cloud::run(async {
        let cloud = counted().await;
        let own = OperatorId::DEFAULT;
        for (name, query) in [
            (
                "get-summary.wrong-query",
                &[("from", "yesterday"), ("day", "1"), ("to", "2026-02-30")],
            ),
            (
                "get-summary.backwards",
                &[("from", "2026-01-03"), ("to", "2026-01-02"), ("to", "2026-01-02")],
            ),
            (
                "get-summary.too-long",
                &[("from", "2026-01-01"), ("to", "2026-04-03"), ("to", "2026-04-03")],
            ),
        ] {
            check(name, &get(&cloud, own, Scope::Read, query).await);
        }
        let longest = [("from", "2026-01-01"), ("to", "2026-04-02")];
        let sent = get(&cloud, own, Scope::Read, &longest).await;
        assert_eq!(sent["body"]["events"].as_array().map(Vec::len), Some(92));
        let logger = Scope::Logger(SiteId::registered(own, "", "a"));
        for scope in [logger, Scope::Bootstrap] {
            assert_eq!(get(&cloud, own, scope, &[]).await["statusCode"], 403, "{scope}");
        }
    });
}

#[test]
fn a_rebuild_does_not_show_in_the_summary_before_it_is_finished() {
    cloud::run(async {
        let cloud = counted().await;
        let own = OperatorId::DEFAULT;
        let before = get(&cloud, own, Scope::Read, &[]).await;
        let consumer = watch_network(&cloud).0;
        let at = Deadline::after(TIME);
        consumer.rebuild(Rebuild::Begin, noon(0), at).await.expect("begun");
        assert_eq!(get(&cloud, own, Scope::Read, &[]).await, before);
        let finish = Rebuild::Finish { generation: 2 };
        consumer.rebuild(finish, noon(0), at).await.expect("finished");
        // Nothing was applied to the new generation.
        assert_ne!(get(&cloud, own, Scope::Read, &[]).await, before);
    });
}

/// Returns the response of get-summary, and the number of calls that it makes to DynamoDB, by operation.
async fn calls(cloud: &Cloud, days: &[(&str, &str)]) -> (Value, BTreeMap<String, u32>) {
    let before = cloud.calls();
    let sent = get(cloud, OperatorId::DEFAULT, Scope::Read, days).await;
    let mut calls = cloud.calls();
    for (operation, count) in &mut calls {
        *count -= before.get(operation).copied().unwrap_or_default();
    }
    calls.retain(|_, count| *count > 0);
    (sent, calls)
}

#[test]
fn get_summary_reads_each_shard_once_for_any_number_of_days() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        let mut events = Vec::new();
        for n in 0..400 {
            let id = SiteId::registered(OperatorId::DEFAULT, "", &n.to_string()).to_string();
            let mut event = event(OperatorId::DEFAULT, ("site", &id), 1, "SiteCreated");
            event.metadata.occurred_at = noon((n % 92) * 24 * 60 * 60);
            events.push(event);
        }
        let response = watch_network(&cloud).handle(&batch(&events), TIME).await;
        assert_eq!(response.expect("a response")["batchItemFailures"], json!([]));
        let (sent, calls) = calls(&cloud, &[("from", "2026-01-01"), ("to", "2026-04-02")]).await;
        assert_eq!(sent["body"]["sites"]["ONBOARDING"], 400);
        let counts = sent["body"]["events"].as_array().expect("days").iter();
        let counts = counts.map(|day| day["types"]["SiteCreated"].as_u64().expect("a count"));
        assert_eq!(counts.sum::<u64>(), 400);
        // The state, the shards and the sites.
        let queries = u32::from(store::SHARDS) + 1;
        let expected = [("GetItem", 1), ("Query", queries)];
        assert_eq!(calls, expected.map(|(name, count)| (name.to_owned(), count)).into());
    });
}

#[test]
fn get_summary_never_needs_more_than_20_calls() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        for shard in 0..store::SHARDS {
            put_types(&cloud, "2026-01-02", shard, 0..1250);
        }
        let days = [("from", "2026-01-01"), ("to", "2026-04-02")];
        let (sent, most) = calls(&cloud, &days).await;
        assert_eq!(sent["statusCode"], 200, "as many rows as are shown");
        put_types(&cloud, "2026-03-02", 0, 0..9_000);
        let (sent, refused) = calls(&cloud, &days).await;
        assert_eq!(sent["statusCode"], 400, "more rows than are shown");
        for calls in [most, refused] {
            assert!(calls.values().sum::<u32>() <= 20, "{calls:?}");
        }
    });
}

#[test]
fn get_summary_shows_the_first_and_the_last_day_and_no_other() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        for day in ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-04"] {
            put_types(&cloud, day, 3, 0..1);
        }
        let days = [("from", "2026-01-02"), ("to", "2026-01-03")];
        let sent = get(&cloud, OperatorId::DEFAULT, Scope::Read, &days).await;
        let day = |day| json!({ "day": day, "types": { "type 0": 2 } });
        assert_eq!(sent["body"]["events"], json!([day("2026-01-02"), day("2026-01-03")]));
    });
}

/// Puts rows of types of a day, as watch-network writes them.
fn put_types(cloud: &Cloud, day: &str, shard: u8, types: std::ops::Range<u32>) {
    for n in types {
        let id = format!("1/{}/events#{shard}", OperatorId::DEFAULT);
        cloud.put(NETWORK, json!({ "id": id, "row": format!("{day}#type {n}"), "count": 2 }));
    }
}

#[test]
fn get_summary_shows_2000_types_of_one_day() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        // The 500 types from 1000 on are in two shards.
        put_types(&cloud, "2026-01-02", 0, 0..1500);
        put_types(&cloud, "2026-01-02", 7, 1000..2000);
        let days = [("from", "2026-01-02"), ("to", "2026-01-02")];
        let sent = get(&cloud, OperatorId::DEFAULT, Scope::Read, &days).await;
        let types = sent["body"]["events"][0]["types"].as_object().expect("types");
        assert_eq!(types.len(), 2000);
        for (kind, count) in [("type 0", 2), ("type 1000", 4), ("type 1499", 4), ("type 1999", 2)] {
            assert_eq!(types[kind], count, "{kind}");
        }
    });
}

#[test]
fn get_summary_refuses_days_with_too_many_types() {
    cloud::run(async {
        let cloud = Cloud::new(Rng::from_seed(1));
        for shard in 0..5 {
            put_types(&cloud, "2026-01-02", shard, 0..2000);
        }
        let days = [("from", "2026-01-02"), ("to", "2026-01-03")];
        let sent = get(&cloud, OperatorId::DEFAULT, Scope::Read, &days).await;
        assert_eq!(sent["statusCode"], 200, "10,000 rows fit");
        put_types(&cloud, "2026-01-03", 0, 0..1);
        check(
            "get-summary.too-many-types",
            &get(&cloud, OperatorId::DEFAULT, Scope::Read, &days).await,
        );
        let fewer = [days[0], ("to", "2026-01-02")];
        let sent = get(&cloud, OperatorId::DEFAULT, Scope::Read, &fewer).await;
        assert_eq!(sent["statusCode"], 200, "fewer days");
    });
}
