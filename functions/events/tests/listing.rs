//! Tests of `GET /events` with requests and responses in API Gateway's format.

mod support;

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{
    OperatorId, Plan, SagaContext, Scope, Timestamp,
    events::{SiteActivated, SiteCreated},
    open::foreign_correlation_key,
};
use serde_json::{Value, json};
use store::{Commit, NewEvent, Transaction};
use support::{
    all_pages, append, append_event, check, event, event_of, get, list, list_events, writer,
};
use testkit::{
    Dynamo,
    dynamo::{EVENTS, Usage},
    sample::{caller, default_caller, noon, other_operator, saga_of},
};

const DAY: i64 = 24 * 60 * 60;
const SOURCE: &str = "com.example.lims";

/// Returns the names of the events: the id in the CloudEvent, or the type of an own event.
fn names(events: &[Value]) -> Vec<&str> {
    let name = |event: &Value| match &event["metadata"]["cloudEvent"]["id"] {
        Value::String(_) => "/metadata/cloudEvent/id",
        _ => "/metadata/type",
    };
    events
        .iter()
        .map(|event| event.pointer(name(event)).and_then(Value::as_str).expect("a name"))
        .collect()
}

fn shown(page: &Value) -> Vec<&str> {
    names(page["events"].as_array().expect("a list"))
}

/// Appends an event of each entity at each time. The id of an event is `<entity>/<seconds>`.
async fn append_all(dynamo: &Dynamo, by: OperatorId, source: &str, entities: u32, times: &[i64]) {
    let step = append_event(dynamo);
    for seconds in times {
        for entity in 0..entities {
            let subject = format!("example.instrument/{entity}");
            let mut event = event_of(&subject, &format!("{entity}/{seconds}"));
            event["source"] = source.into();
            append(&step, &writer(by), &event, noon(*seconds)).await;
        }
    }
}

/// Writes two events of the site itself: `SiteCreated` and, a second later, `SiteActivated`.
async fn write_own(dynamo: &Dynamo, saga: SagaContext, seconds: i64) {
    let created = SiteCreated {
        site_id: saga.site_id,
        onboarding_id: saga.onboarding_id,
        name: "Alamosa".to_owned(),
        operator: "NOAA".to_owned(),
        location: contracts::Location { latitude: 37.7, longitude: -105.92, elevation_m: 2317.0 },
        sensors: Vec::new(),
        plan: Plan::Standard,
        payment_method: contracts::PaymentMethodId("pm_secret".to_owned()),
    };
    let activated = SiteActivated { site_id: saga.site_id };
    let transaction = Transaction::on(&dynamo.table(EVENTS))
        .event(&dynamo.outbox(), NewEvent::in_saga(saga, saga.site_id, 1, noon(seconds), created))
        .event(
            &dynamo.outbox(),
            NewEvent::in_saga(saga, saga.site_id, 2, noon(seconds + 1), activated),
        );
    assert!(matches!(transaction.commit().await, Ok(Commit::Done)));
}

/// Writes an event of the site itself at each time, with the sequence 1, 2, 3 and so on.
async fn write_at(dynamo: &Dynamo, saga: SagaContext, times: &[i64]) {
    for (sequence, seconds) in (1..).zip(times) {
        let data = SiteActivated { site_id: saga.site_id };
        let event = NewEvent::in_saga(saga, saga.site_id, sequence, noon(*seconds), data);
        dynamo.put(EVENTS, json!(event.row().expect("a row"))).await;
    }
}

/// Returns the sequences of the events.
fn sequences(events: &[Value]) -> Vec<u64> {
    let sequence = |event: &Value| event["metadata"]["sequence"].as_u64().expect("a sequence");
    events.iter().map(sequence).collect()
}

fn calls(dynamo: &Dynamo) -> Vec<(String, u32)> {
    let Usage { calls, .. } = dynamo.take_usage();
    calls.into_iter().collect()
}

#[tokio::test]
async fn events_of_an_entity_are_listed_newest_first_and_after_a_sequence_oldest_first() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    append_all(&dynamo, OperatorId::DEFAULT, SOURCE, 1, &[0, 1, 2, 3, 4, 5, 6]).await;
    let entity = ("entity", "example.instrument/0");
    let result = list_events(&dynamo).handle(&by, &get(&[entity, ("limit", "2")]), noon(60)).await;
    check("list-events.page", result);

    let newest_first = ["0/6", "0/5", "0/4", "0/3", "0/2", "0/1", "0/0"];
    for limit in [1, 2, 3, 7, 100] {
        let events = all_pages(&dynamo, &by, &[entity], limit, noon(60)).await;
        assert_eq!(names(&events), newest_first, "{limit}");
        let query = [entity, ("after", "2")];
        let events = all_pages(&dynamo, &by, &query, limit, noon(60 + 40 * DAY)).await;
        assert_eq!(names(&events), ["0/2", "0/3", "0/4", "0/5", "0/6"], "{limit}");
    }
    let page = list(&dynamo, &by, &[entity, ("after", "7")], noon(60)).await;
    assert_eq!(page, json!({ "events": [] }));
    let (from, to) = (noon(2).to_string(), noon(5).to_string());
    let period = [entity, ("from", &from), ("to", &to)];
    let events = all_pages(&dynamo, &by, &period, 2, noon(60)).await;
    assert_eq!(names(&events), ["0/4", "0/3", "0/2"]);
}

#[tokio::test]
async fn events_of_a_site_in_the_period_are_listed_although_its_writers_clocks_differ() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let saga = saga_of(OperatorId::DEFAULT, "site");
    // The period has the second, fourth and sixth event. Between them are one before its start and one after its end.
    write_at(&dynamo, saga, &[-2000, 500, -350, 300, 1100, 400, 1200, 5000]).await;
    let (site, from, to) =
        (format!("site/{}", saga.site_id), noon(0).to_string(), noon(1000).to_string());
    let period = [("entity", site.as_str()), ("from", &from), ("to", &to)];
    for limit in [1, 2, 100] {
        let events = all_pages(&dynamo, &by, &period, limit, noon(6000)).await;
        assert_eq!(sequences(&events), [6, 4, 2], "{limit}");
    }
}

#[tokio::test]
async fn a_page_of_an_old_period_takes_few_reads_whatever_follows_the_period() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let saga = saga_of(OperatorId::DEFAULT, "site");
    // An event each hour.
    let times: Vec<_> = (0..300).map(|hour| hour * 60 * 60).collect();
    write_at(&dynamo, saga, &times).await;
    append_all(&dynamo, OperatorId::DEFAULT, SOURCE, 1, &times).await;
    let site = format!("site/{}", saga.site_id);
    for entity in [site.as_str(), "example.instrument/0"] {
        for (to, newest) in [(1, 1), (2, 2), (150, 150), (299, 299), (300, 300), (600, 300)] {
            let (from, to) = (noon(-1).to_string(), noon(to * 60 * 60).to_string());
            let period = [("entity", entity), ("from", from.as_str()), ("to", &to), ("limit", "1")];
            drop(calls(&dynamo));
            let page = list(&dynamo, &by, &period, noon(600 * 60 * 60)).await;
            let events = page["events"].as_array().expect("a list");
            assert_eq!(sequences(events), [newest], "{entity}");
            let calls = calls(&dynamo);
            let [(query, count)] = calls.as_slice() else { panic!("{calls:?}") };
            // The bisection reads the newest event, and takes nine steps for 300 events. The page takes two queries.
            assert!(query == "Query" && *count <= 12, "{entity}, {to}: {calls:?}");
        }
    }
    let (from, to) = (noon(-2).to_string(), noon(-1).to_string());
    let before = [("entity", site.as_str()), ("from", &from), ("to", &to)];
    let page = list(&dynamo, &by, &before, noon(0)).await;
    assert_eq!(page, json!({ "events": [] }), "before the first event");
}

#[tokio::test]
async fn without_from_the_last_day_is_listed() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    append_all(&dynamo, OperatorId::DEFAULT, SOURCE, 1, &[0, 10, DAY]).await;
    let to = noon(20).to_string();
    for query in [("entity", "example.instrument/0"), ("type", "com.example.CalibrationDone")] {
        let page = list(&dynamo, &by, &[query], noon(DAY + 5)).await;
        assert_eq!(shown(&page), [format!("0/{DAY}").as_str(), "0/10"], "{query:?}");
        let page = list(&dynamo, &by, &[query, ("to", &to)], noon(DAY + 5)).await;
        assert_eq!(shown(&page), ["0/10", "0/0"], "{query:?}");
    }
}

#[tokio::test]
async fn the_pages_of_a_type_cross_shards_and_days_and_lose_and_repeat_nothing() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    // Each time is shared by 12 events in several shards.
    let times = [0, 1, DAY, 3 * DAY];
    append_all(&dynamo, OperatorId::DEFAULT, SOURCE, 12, &times).await;
    append_all(&dynamo, other_operator(), "com.example.other", 3, &times).await;
    let from = noon(-10).to_string();
    let query = [("type", "com.example.CalibrationDone"), ("from", from.as_str())];
    for limit in [5, 12, 100] {
        let events = all_pages(&dynamo, &by, &query, limit, noon(3 * DAY + 10)).await;
        let names = names(&events);
        assert_eq!(names.len(), 48, "{limit}");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 48, "{limit}");
        let time = |event: &Value| event["metadata"]["occurredAt"].as_str().map(str::to_owned);
        assert!(events.iter().map(time).rev().is_sorted(), "{limit}");
    }
    let page = list(&dynamo, &by, &[("type", "com.example.Calibration")], noon(DAY)).await;
    assert_eq!(page, json!({ "events": [] }));
}

#[tokio::test]
async fn a_page_of_a_type_reads_no_more_than_it_needs() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let midnight = |day: i64| noon(day * DAY - DAY / 2).to_string();
    let (from, to) = (midnight(0), midnight(1));
    let kind = ("type", "com.example.CalibrationDone");
    let day = [kind, ("from", from.as_str()), ("to", to.as_str())];
    drop(calls(&dynamo));
    list(&dynamo, &by, &day, noon(0)).await;
    assert_eq!(calls(&dynamo), [("Query".to_owned(), 8)], "an empty day");
    let week = midnight(-6);
    list(&dynamo, &by, &[kind, ("from", &week), ("to", &to)], noon(0)).await;
    assert_eq!(calls(&dynamo), [("Query".to_owned(), 56)], "an empty week");

    let times: Vec<_> = (-3..=0).map(|day| day * DAY).collect();
    append_all(&dynamo, OperatorId::DEFAULT, SOURCE, 40, &times).await;
    drop(calls(&dynamo));
    let page =
        list(&dynamo, &by, &[kind, ("from", &week), ("to", &to), ("limit", "10")], noon(0)).await;
    assert_eq!(shown(&page).len(), 10);
    let calls = calls(&dynamo);
    let [(get, gets), (query, queries)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((get.as_str(), *gets, query.as_str()), ("BatchGetItem", 1, "Query"));
    // The other days are not read. All events of the day have the same time, so each shard is read to its end.
    assert!(*queries <= 8 * 4, "{queries}");
}

#[tokio::test]
async fn another_operators_events_are_not_shown_and_take_the_reads_of_unknown_ones() {
    let dynamo = Dynamo::start().await;
    let (own, other) = (OperatorId::DEFAULT, other_operator());
    append_all(&dynamo, own, SOURCE, 1, &[0]).await;
    append_all(&dynamo, other, "com.example.other", 1, &[0, 1, 2]).await;
    let (site, unknown) = (saga_of(other, "site"), saga_of(other, "unknown"));
    write_own(&dynamo, site, 0).await;
    let by = default_caller();

    // The same entity type and id is another entity.
    let page = list(&dynamo, &by, &[("entity", "example.instrument/0")], noon(9)).await;
    assert_eq!(shown(&page), ["0/0"]);
    let entity = |saga: SagaContext| ("entity", format!("site/{}", saga.site_id));
    let correlation = |saga: SagaContext| ("correlationId", saga.onboarding_id.to_string());
    let foreign = ("entity", format!("{other}/example.instrument#0"));
    let forged = ("correlationId", foreign_correlation_key(other, "work-order"));
    for (known, unknown) in [
        (entity(site), entity(unknown)),
        (correlation(site), correlation(unknown)),
        (("type", "SiteCreated".to_owned()), ("type", "SiteRemoved".to_owned())),
        (foreign, entity(unknown)),
        (forged, correlation(unknown)),
    ] {
        let old = noon(1).to_string();
        for extra in [None, Some(("after", "0")), Some(("limit", "1")), Some(("to", &old))] {
            let mut reads = Vec::new();
            for (name, value) in [&known, &unknown] {
                if extra.is_some_and(|(extra, _)| extra == "after") && *name != "entity" {
                    continue;
                }
                drop(calls(&dynamo));
                let query: Vec<_> = [(*name, value.as_str())].into_iter().chain(extra).collect();
                assert_eq!(list(&dynamo, &by, &query, noon(9)).await, json!({ "events": [] }));
                reads.push(calls(&dynamo));
            }
            assert!(reads.windows(2).all(|pair| pair[0] == pair[1]), "{known:?} {reads:?}");
        }
    }
    // Its own operator sees them.
    let theirs = writer(other);
    for (query, count) in [
        (entity(site), 2),
        (correlation(site), 2),
        (("type", "SiteCreated".to_owned()), 1),
        (("entity", "example.instrument/0".to_owned()), 3),
    ] {
        let page = list(&dynamo, &theirs, &[(query.0, query.1.as_str())], noon(9)).await;
        assert_eq!(shown(&page).len(), count, "{query:?}");
    }
}

#[tokio::test]
async fn a_correlation_id_finds_own_events_and_those_of_other_systems() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let saga = saga_of(OperatorId::DEFAULT, "site");
    write_own(&dynamo, saga, 0).await;
    let step = append_event(&dynamo);
    let id = saga.onboarding_id.to_string();
    for (name, seconds) in [("a", -1), ("b", 1), ("c", 2)] {
        let mut event = event_of(&format!("example.instrument/{name}"), name);
        event["correlationid"] = id.as_str().into();
        append(&step, &by, &event, noon(seconds)).await;
    }
    let mut theirs = event("x");
    (theirs["correlationid"], theirs["source"]) = (id.as_str().into(), "com.example.other".into());
    append(&step, &writer(other_operator()), &theirs, noon(1)).await;
    for limit in [1, 2, 50] {
        let events = all_pages(&dynamo, &by, &[("correlationId", &id)], limit, noon(60)).await;
        let mut found = names(&events);
        // Two events have the same time.
        found[1..3].sort_unstable();
        assert_eq!(found, ["c", "SiteActivated", "b", "SiteCreated", "a"], "{limit}");
    }
    let query = [("correlationId", id.as_str())];
    let page = list(&dynamo, &writer(other_operator()), &query, noon(60)).await;
    assert_eq!(shown(&page), ["x"]);
}

#[tokio::test]
async fn payment_methods_of_own_events_are_hidden_and_data_of_other_systems_are_unchanged() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let saga = saga_of(OperatorId::DEFAULT, "site");
    write_own(&dynamo, saga, 0).await;
    let entity = format!("site/{}", saga.site_id);
    for query in [
        ("entity", entity.as_str()),
        ("type", "SiteCreated"),
        ("correlationId", &saga.onboarding_id.to_string()),
    ] {
        let page = list(&dynamo, &by, &[query], noon(9)).await;
        assert!(!page.to_string().contains("pm_secret"), "{page}");
        let created = page["events"].as_array().expect("a list").last().expect("an event");
        assert_eq!(created["data"]["paymentMethod"], "hidden");
        assert_eq!(created["data"]["name"], "Alamosa");
    }

    let mut foreign = event("1");
    foreign["data"] = json!({ "paymentMethod": "cash" });
    let exact = foreign.to_string().replace("\"cash\"", "12345678901234567890.10");
    let step = append_event(&dynamo);
    let sent = step.handle(&by, &support::post(&exact), noon(0)).await;
    assert!(sent.is_ok(), "{sent:?}");
    let request = get(&[("entity", "example.instrument/SN-4711")]);
    let response = list_events(&dynamo).handle(&by, &request, noon(9)).await;
    let response = serde_json::to_value(lambda::http::response(response)).expect("a response");
    let body = response["body"].as_str().expect("a body");
    assert!(body.contains(r#""data":{"paymentMethod":12345678901234567890.10}"#), "{body}");
}

#[tokio::test]
async fn a_page_of_large_events_is_short_and_nothing_is_lost() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let step = append_event(&dynamo);
    for number in 0..30 {
        let mut event = event(&number.to_string());
        event["data"] = "\"".repeat(90 * 1024).into();
        append(&step, &by, &event, noon(number)).await;
    }
    for query in [("entity", "example.instrument/SN-4711"), ("type", "com.example.CalibrationDone")]
    {
        let request = get(&[query, ("limit", "100")]);
        let response = list_events(&dynamo).handle(&by, &request, noon(60)).await;
        let response = serde_json::to_string(&lambda::http::response(response)).expect("JSON");
        assert!(response.len() < 6 * 1024 * 1024, "{}", response.len());
        let events = all_pages(&dynamo, &by, &[query], 100, noon(60)).await;
        let expected: Vec<_> = (0..30).rev().map(|number| number.to_string()).collect();
        assert_eq!(names(&events), expected, "{query:?}");
    }
}

#[tokio::test]
async fn a_page_token_is_bound_to_its_query_and_a_forged_one_shows_only_own_events() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    append_all(&dynamo, OperatorId::DEFAULT, SOURCE, 1, &[0, 1, 2]).await;
    append_all(&dynamo, other_operator(), "com.example.other", 1, &[0, 1, 2]).await;
    let entity = ("entity", "example.instrument/0");
    let page = list(&dynamo, &by, &[entity, ("limit", "1")], noon(9)).await;
    let token = page["nextPageToken"].as_str().expect("a token");
    let step = list_events(&dynamo);
    let other_query = get(&[("entity", "example.instrument/1"), ("pageToken", token)]);
    check("list-events.wrong-token", step.handle(&by, &other_query, noon(9)).await);
    let same_query = get(&[entity, ("pageToken", token)]);
    let sent = step.handle(&writer(other_operator()), &same_query, noon(9)).await;
    assert_eq!(sent.expect_err("a token of another operator").status, 400);
    // A token that moves the position far into the future and the start to 1970.
    let forge = |token: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(token).expect("base64");
        let position = json!({
            "from": Timestamp::from_millis(0),
            "last": { "occurredAt": noon(10_000 * DAY), "entity": "x", "sequence": 3 },
        });
        let bytes = [&bytes[..8], position.to_string().as_bytes()].concat();
        URL_SAFE_NO_PAD.encode(bytes)
    };
    let page = list(&dynamo, &by, &[entity, ("pageToken", &forge(token))], noon(9)).await;
    assert_eq!(shown(&page), ["0/1", "0/0"]);
    let kind = ("type", "com.example.CalibrationDone");
    let page = list(&dynamo, &by, &[kind, ("limit", "1")], noon(9)).await;
    let token = forge(page["nextPageToken"].as_str().expect("a token"));
    let sent = step.handle(&by, &get(&[kind, ("pageToken", &token)]), noon(9)).await;
    assert_eq!(sent.expect_err("too many days").status, 400);
}

#[tokio::test]
async fn invalid_queries_are_refused() {
    let (dynamo, by) = (Dynamo::start().await, default_caller());
    let step = list_events(&dynamo);
    let wrong = [
        ("entity", "site"),
        ("from", "yesterday"),
        ("to", "tomorrow"),
        ("limit", "101"),
        ("order", "asc"),
        ("after", "-1"),
        ("type", ""),
    ];
    check("list-events.wrong-query", step.handle(&by, &get(&wrong), noon(0)).await);
    check("list-events.no-query", step.handle(&by, &get(&[]), noon(0)).await);
    let (from, to) = (noon(-32 * DAY).to_string(), noon(0).to_string());
    let long = [("type", "SiteCreated"), ("from", from.as_str()), ("to", to.as_str())];
    check("list-events.long-period", step.handle(&by, &get(&long), noon(0)).await);
    let reversed = [("type", "SiteCreated"), ("from", to.as_str()), ("to", from.as_str())];
    check("list-events.reversed-period", step.handle(&by, &get(&reversed), noon(0)).await);
    let after = [("type", "SiteCreated"), ("after", "1"), ("from", from.as_str())];
    check("list-events.wrong-after", step.handle(&by, &get(&after), noon(0)).await);
    let logger = caller(OperatorId::DEFAULT, Scope::Bootstrap);
    let sent = step.handle(&logger, &get(&[("type", "SiteCreated")]), noon(0)).await;
    assert_eq!(sent.expect_err("no reader").status, 403);
    let reader = caller(OperatorId::DEFAULT, Scope::Read);
    list(&dynamo, &reader, &[("type", "SiteCreated")], noon(0)).await;
}
