//! Idempotency records. Each test is a sequence of runs and failures. The lease is 30 s. `noon(n)` is n seconds after
//! noon.

use std::time::Duration;

use contracts::Timestamp;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{BeginResult, Commit, Idempotency, Lock, StoreError, Transaction};
use testkit::{Dynamo, dynamo::BILLING, sample::noon};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    customer: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Outcome {
    subscription: String,
}

fn checkpoint(customer: &str) -> Checkpoint {
    Checkpoint { customer: customer.to_owned() }
}

struct Records {
    dynamo: Dynamo,
    idempotency: Idempotency,
}

impl Records {
    async fn start() -> Self {
        let dynamo = Dynamo::start().await;
        let lease = Duration::from_secs(30);
        let idempotency = Idempotency::new(dynamo.table(BILLING), lease);
        Self { dynamo, idempotency }
    }

    async fn begin(&self, now: Timestamp) -> BeginResult<Checkpoint, Outcome> {
        self.idempotency.begin("work", "request", now).await.expect("a response")
    }

    async fn lock(&self, now: Timestamp) -> Lock<Checkpoint> {
        match self.begin(now).await {
            BeginResult::Started(lock) => lock,
            other => panic!("no lock: {other:?}"),
        }
    }

    async fn save_checkpoint(&self, lock: &Lock<Checkpoint>, customer: &str) -> bool {
        let saved = self.idempotency.checkpoint(lock, &checkpoint(customer)).await;
        matches!(saved.expect("a response"), Commit::Done)
    }

    async fn release(&self, lock: &Lock<Checkpoint>) -> bool {
        let released = self.idempotency.release(lock).await.expect("a response");
        matches!(released, Commit::Done)
    }

    /// Commits the result together with the record's completion. Returns whether the run still had the lock.
    async fn complete(&self, lock: &Lock<Checkpoint>, result: &str, now: Timestamp) -> bool {
        let table = self.dynamo.table(BILLING);
        let row = json!({ "result": result });
        let key = store::Key::id(format!("result#{result}"));
        let outcome = Outcome { subscription: result.to_owned() };
        let transaction = Transaction::on(&table).create(&table, &key, &row);
        let transaction =
            self.idempotency.complete(transaction, lock, &outcome, now).expect("a result");
        match transaction.commit().await.expect("a response") {
            Commit::Done => true,
            Commit::Refused(refused) => {
                assert!(refused.contains(lock.key()), "the lock's condition failed");
                false
            }
        }
    }

    async fn completed_with(&self, now: Timestamp) -> String {
        match self.begin(now).await {
            BeginResult::Completed(Outcome { subscription }) => subscription,
            other => panic!("not completed: {other:?}"),
        }
    }

    async fn delete_record(&self, now: Timestamp) -> bool {
        self.delete_record_after_seeing(None, now).await
    }

    async fn delete_record_after_seeing(&self, seen: Option<&Checkpoint>, now: Timestamp) -> bool {
        let table = self.dynamo.table(BILLING);
        let deleting = self.idempotency.delete_record(Transaction::on(&table), "work", seen, now);
        let deleting = deleting.expect("a transaction").commit();
        matches!(deleting.await.expect("a response"), Commit::Done)
    }

    async fn record(&self) -> Option<Value> {
        self.dynamo.row(BILLING, "idempotency#work").await
    }
}

#[tokio::test]
async fn a_completed_run_is_not_repeated() {
    let it = Records::start().await;
    let lock = it.lock(noon(0)).await;
    assert!(!lock.resumed && lock.checkpoint.is_none());
    assert!(it.complete(&lock, "sub_1", noon(1)).await);
    for second in [2, 100] {
        assert_eq!(it.completed_with(noon(second)).await, "sub_1");
    }
}

#[tokio::test]
async fn the_record_has_the_layout_of_powertools() {
    let it = Records::start().await;
    let lock = it.lock(noon(0)).await;
    let mut record = it.record().await.expect("a record");
    assert!(record["owner"].take().is_string());
    let week = 7 * 24 * 3600;
    assert_eq!(
        record,
        json!({
            "id": "idempotency#work",
            "status": "INPROGRESS",
            "owner": null,
            "validation": "request",
            "in_progress_expiration": noon(30).millis(),
            "expiration": noon(week).seconds(),
        })
    );
    assert!(it.complete(&lock, "sub_1", noon(5)).await);
    let record = it.record().await.expect("a record");
    assert_eq!(record["status"], "COMPLETED");
    assert_eq!(record["data"], r#"{"subscription":"sub_1"}"#);
    assert_eq!(record["expiration"], noon(week + 5).seconds());
}

#[tokio::test]
async fn a_second_run_gets_the_expiry_of_the_lock() {
    let it = Records::start().await;
    it.lock(noon(0)).await;
    for second in [0, 29, 30] {
        match it.begin(noon(second)).await {
            BeginResult::InProgress(until) => assert_eq!(until, noon(30)),
            other => panic!("at {second}: {other:?}"),
        }
    }
    assert!(it.lock(noon(31)).await.resumed);
}

#[tokio::test]
async fn only_one_of_several_concurrent_runs_begins() {
    let it = Records::start().await;
    let results = join_all((0..10).map(|_| it.begin(noon(0)))).await;
    let started = results.iter().filter(|result| matches!(result, BeginResult::Started(_)));
    assert_eq!(started.count(), 1, "{results:?}");

    // Only one run takes over an expired lock.
    let results = join_all((0..10).map(|_| it.begin(noon(31)))).await;
    let started = results.iter().filter(|result| matches!(result, BeginResult::Started(_)));
    assert_eq!(started.count(), 1, "{results:?}");
}

#[tokio::test]
async fn a_slow_first_run_can_not_finish_the_second_runs_work() {
    let it = Records::start().await;
    let slow = it.lock(noon(0)).await;
    assert!(it.save_checkpoint(&slow, "cus_1").await);
    let second = it.lock(noon(31)).await;
    assert!(second.resumed);
    assert_eq!(second.checkpoint, Some(checkpoint("cus_1")), "the checkpoint of the first run");

    let before = it.dynamo.all_rows().await;
    assert!(!it.save_checkpoint(&slow, "cus_2").await);
    assert!(!it.complete(&slow, "slow", noon(32)).await);
    assert_eq!(it.dynamo.all_rows().await, before, "the slow run changed something");

    assert!(it.complete(&second, "second", noon(33)).await);
    assert!(!it.complete(&slow, "slow", noon(34)).await);
    assert_eq!(it.completed_with(noon(35)).await, "second");
}

#[tokio::test]
async fn a_slow_first_run_can_not_release_the_second_runs_lock() {
    let it = Records::start().await;
    let slow = it.lock(noon(0)).await;
    let second = it.lock(noon(31)).await;
    assert!(!it.release(&slow).await);
    let third = it.begin(noon(32)).await;
    assert!(matches!(third, BeginResult::InProgress(until) if until == noon(61)), "{third:?}");
    assert!(it.complete(&second, "second", noon(33)).await);
}

#[tokio::test]
async fn a_run_with_an_expired_lock_may_finish_if_no_other_run_began() {
    let it = Records::start().await;
    let slow = it.lock(noon(0)).await;
    assert!(it.complete(&slow, "slow", noon(100)).await);
    assert_eq!(it.completed_with(noon(101)).await, "slow");
}

#[tokio::test]
async fn a_released_lock_can_be_taken_at_once() {
    let it = Records::start().await;
    let failed = it.lock(noon(0)).await;
    assert!(it.save_checkpoint(&failed, "cus_1").await);
    assert!(it.release(&failed).await);
    let next = it.lock(noon(1)).await;
    assert!(next.resumed);
    assert_eq!(next.checkpoint, Some(checkpoint("cus_1")));
    assert!(!it.complete(&failed, "failed", noon(2)).await);
    assert!(it.complete(&next, "next", noon(2)).await);
}

#[tokio::test]
async fn another_request_under_the_same_id_is_refused_at_any_time() {
    let it = Records::start().await;
    let refused = async |second| {
        let other = it.idempotency.begin::<Checkpoint, Outcome>("work", "other", noon(second));
        let error = other.await.expect_err("another request");
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("another request"), "{error}");
    };
    let lock = it.lock(noon(0)).await;
    refused(1).await;
    refused(31).await;
    assert!(it.complete(&lock, "sub_1", noon(32)).await, "the lock was not taken over");
    refused(33).await;
    assert_eq!(it.completed_with(noon(34)).await, "sub_1");
}

#[tokio::test]
async fn a_record_with_an_unseen_checkpoint_is_not_deleted() {
    let it = Records::start().await;
    let lock = it.lock(noon(0)).await;
    assert!(it.save_checkpoint(&lock, "cus_1").await);
    assert!(it.release(&lock).await);
    assert!(!it.delete_record(noon(1)).await, "the caller has not seen cus_1");
    assert!(!it.delete_record_after_seeing(Some(&checkpoint("cus_0")), noon(1)).await);
    assert!(it.delete_record_after_seeing(Some(&checkpoint("cus_1")), noon(1)).await);
    assert_eq!(it.record().await, None);
}

#[tokio::test]
async fn the_record_of_a_run_in_progress_is_not_deleted() {
    let it = Records::start().await;
    assert!(it.delete_record(noon(0)).await, "a missing record");
    let lock = it.lock(noon(0)).await;
    assert!(!it.delete_record(noon(30)).await, "the run may still have effects");
    assert!(it.complete(&lock, "sub_1", noon(30)).await);
    assert!(it.delete_record(noon(30)).await);
    assert_eq!(it.record().await, None);
    // A late run finds neither record nor lock.
    assert!(!it.save_checkpoint(&lock, "cus_1").await);

    // A run that failed or whose lock has expired is not in progress.
    let failed = it.lock(noon(31)).await;
    assert!(!failed.resumed);
    assert!(it.release(&failed).await);
    assert!(it.delete_record(noon(32)).await);
    it.lock(noon(33)).await;
    assert!(!it.delete_record(noon(63)).await);
    assert!(it.delete_record(noon(64)).await);
    assert_eq!(it.record().await, None);
}

#[tokio::test]
async fn unfinished_returns_the_checkpoint_of_a_run_in_progress() {
    let it = Records::start().await;
    let unfinished = async || it.idempotency.unfinished::<Checkpoint>("work").await.expect("read");
    assert_eq!(unfinished().await, None);
    let lock = it.lock(noon(0)).await;
    assert_eq!(unfinished().await, Some(None));
    assert!(it.save_checkpoint(&lock, "cus_1").await);
    assert_eq!(unfinished().await, Some(Some(checkpoint("cus_1"))));
    assert!(it.complete(&lock, "sub_1", noon(1)).await);
    assert_eq!(unfinished().await, None);
}
