//! Tests `fieldctl sources`: the real binary against an embedded DynamoDB.

mod cloud;

use cloud::Cloud;
use contracts::OperatorId;
use serde_json::{Value, json};
use testkit::{
    dynamo::{AUDIT, EVENT_GUARDS},
    sample::other_operator,
};

const LIMS: &str = "com.example.lims";

/// Starts a stack with two claims of the default operator, one of another operator, and a row of an appended event.
async fn with_claims() -> Cloud {
    let cloud = Cloud::start(|request| panic!("{} is not expected", request.operation)).await;
    for (source, operator) in [
        (LIMS, OperatorId::DEFAULT),
        ("com.example.buoys", OperatorId::DEFAULT),
        ("org.example", other_operator()),
    ] {
        let row = json!({
            "id": format!("source#{source}"), "operatorId": operator, "claimedAt": "2026-11-21T12:00:00.000Z",
        });
        cloud.dynamo.put(EVENT_GUARDS, row).await;
    }
    let row = json!({ "id": "event#a/b c", "content": "0", "eventId": "0", "sequence": 1 });
    cloud.dynamo.put(EVENT_GUARDS, row).await;
    cloud
}

async fn owner(cloud: &Cloud, source: &str) -> Value {
    let row = cloud.dynamo.row(EVENT_GUARDS, &format!("source#{source}")).await;
    row.unwrap_or_default()["operatorId"].clone()
}

/// Returns the entries of the audit trail without their actor and time.
async fn audited(cloud: &Cloud) -> Vec<[Value; 4]> {
    let mut entries: Vec<_> = cloud.dynamo.rows(AUDIT).await;
    entries.sort_by_key(|entry| entry["operatorId"].to_string());
    let shown = |mut entry: Value| {
        ["operatorId", "action", "target", "details"].map(|name| entry[name].take())
    };
    entries.into_iter().map(shown).collect()
}

#[tokio::test]
async fn sources_are_listed_with_their_operators_and_without_other_rows() {
    let cloud = with_claims().await;
    let listed = async |more: &[&str]| {
        let (code, out, err) =
            cloud.run(&[&["--json", "sources", "list"][..], more].concat()).await;
        assert_eq!((code, err.as_str()), (0, ""));
        let parse = |line: &str| serde_json::from_str::<Value>(line).expect("JSON");
        out.lines().map(parse).collect::<Vec<_>>()
    };
    let all = listed(&[]).await;
    let sources: Vec<_> = all.iter().map(|it| it["source"].as_str().expect("a source")).collect();
    assert_eq!(sources, ["com.example.buoys", LIMS, "org.example"]);
    let expected = json!({
        "source": "org.example", "operatorId": other_operator(), "claimedAt": "2026-11-21T12:00:00.000Z",
    });
    assert_eq!(all[2], expected);
    let other = other_operator().to_string();
    assert_eq!(listed(&["--operator", &other]).await, [expected]);
    let (_, out, _) = cloud.run(&["sources", "list"]).await;
    assert!(out.contains("OPERATOR") && out.contains(LIMS), "{out}");
}

#[tokio::test]
async fn a_released_source_has_no_claim_and_the_release_is_audited() {
    let cloud = with_claims().await;
    let (code, out, err) = cloud.run(&["sources", "release", LIMS, "--yes"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("released") && out.contains("Within a minute"), "{out}");
    assert_eq!(owner(&cloud, LIMS).await, Value::Null);
    assert_eq!(owner(&cloud, "org.example").await, json!(other_operator()));
    let from = OperatorId::DEFAULT;
    let details = format!("from {from} to nobody");
    let entry = [json!(from), json!("ReleaseSource"), json!(LIMS), json!(details)];
    assert_eq!(audited(&cloud).await, [entry]);
    let (code, _, err) = cloud.run(&["sources", "release", LIMS, "--yes"]).await;
    assert_eq!(code, 3, "{err}");
    assert_eq!(audited(&cloud).await.len(), 1);
}

#[tokio::test]
async fn a_transferred_source_has_the_new_operator_and_both_operators_see_the_entry() {
    let cloud = with_claims().await;
    let (from, to) = (OperatorId::DEFAULT, other_operator());
    let text = to.to_string();
    let command = ["--json", "sources", "transfer", LIMS, "--to", &text, "--yes"];
    let (code, out, err) = cloud.run(&command).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let document: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(document, json!({ "source": LIMS, "from": from, "to": to }));
    assert_eq!(owner(&cloud, LIMS).await, json!(to));
    let entry = |operator: OperatorId| {
        let details = format!("from {from} to {to}");
        [json!(operator), json!("TransferSource"), json!(LIMS), json!(details)]
    };
    let mut entries = [entry(from), entry(to)];
    entries.sort_by_key(|entry| entry[0].to_string());
    assert_eq!(audited(&cloud).await, entries);
    // A repeat changes nothing.
    let (code, out, _) = cloud.run(&command[1..]).await;
    assert!(code == 0 && out.contains("already"), "{out}");
    assert_eq!(audited(&cloud).await.len(), 2);
    // A source that nobody has used can be given to an operator before its first event.
    let (code, ..) = cloud.run(&["sources", "transfer", "new", "--to", &text, "--yes"]).await;
    assert_eq!((code, owner(&cloud, "new").await), (0, json!(to)));
}

#[tokio::test]
async fn a_source_is_changed_only_after_a_confirmation() {
    let cloud = with_claims().await;
    let (code, _, err) = cloud.run(&["sources", "release", LIMS]).await;
    assert!(code == 2 && err.contains("--yes"), "{err}");
    assert_eq!(owner(&cloud, LIMS).await, json!(OperatorId::DEFAULT));
    assert!(audited(&cloud).await.is_empty());
}
