//! The row of a bucket in the limits table.

use aws_sdk_dynamodb::{
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure},
};
use contracts::RateLimit;
use store::{Item, Key, StoreError, Table};

use crate::bucket::{Lease, Outcome};

/// The maximum number of updates of one lease.
const MAX_UPDATES: usize = 4;
/// A window is the time in which an empty bucket fills. If all clocks are equal, no `tat` is more than one window after
/// now. Because clocks differ, it may be later by this many milliseconds. A `tat` that is even later was written with a
/// wrong clock. The next update then starts the row again, as if the bucket were full.
const MAX_SKEW_MILLIS: i64 = 60_000;
/// The time after which DynamoDB may delete an unused row, in seconds. It begins one window after the last lease, when
/// the bucket is full in any case.
const RETENTION_SECONDS: i64 = 3_600;

/// A row of the limits table. Its key is the id of the bucket.
///
/// `tat` is the theoretical arrival time: the bucket is full from that time on. Each token that is taken moves `tat` by
/// one interval into the future. A bucket whose `tat` is one window (`burst` intervals) ahead is empty. So an
/// update never moves `tat` to more than one window after the time of the environment that sends it.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub table: &'a Table,
    pub id: &'a str,
    pub limit: RateLimit,
}

/// A conditional update.
enum Update {
    /// Takes tokens from a bucket that is not full.
    Extend { cost: i64, limit: i64 },
    /// Takes tokens from a full bucket.
    Start { cost: i64 },
}

impl Row<'_> {
    /// Takes the owed and the wanted tokens, or as many as there are. Takes nothing if no token would be left after the
    /// owed ones are paid.
    pub async fn lease(&self, lease: Lease, now: i64) -> Result<Outcome, StoreError> {
        let interval = self.limit.interval_millis();
        let window = self.window();
        let mut tokens = (lease.owed + lease.wanted).min(self.limit.burst());
        // The first update needs no read: it guesses from the last known `tat` whether the bucket is full. If the guess
        // is right and the bucket has enough tokens, there is no second update. A `tat` in the past suggests a full
        // bucket. There is one exception: `tat` passed less than one window ago, and other environments use the bucket.
        // They have probably moved it into the future since, so the guess is "not full".
        let mut seen = match lease.tat {
            Some(tat) if lease.shared && (now - window..now).contains(&tat) => Some(now),
            tat => tat,
        };
        for _ in 0..MAX_UPDATES {
            let not_full = seen.filter(|tat| *tat >= now && !self.is_wrong(*tat, now));
            let update = if let Some(tat) = not_full {
                // The difference can be negative if the clock is behind that of another environment. Then nothing is
                // available.
                let available = u32::try_from((now + window - tat) / interval).unwrap_or_default();
                if available <= lease.owed {
                    // The owed tokens, and one for this request.
                    let needed = i64::from(lease.owed + 1) * interval;
                    return Ok(Outcome::Empty { until: tat + needed - window, tat });
                }
                tokens = tokens.min(available);
                let cost = i64::from(tokens) * interval;
                Update::Extend { cost, limit: now + window - cost }
            } else {
                Update::Start { cost: i64::from(tokens) * interval }
            };
            match self.update(update, now).await? {
                Ok(row) => {
                    let cost = i64::from(tokens) * interval;
                    let tat = tat(&row).unwrap_or(now + cost);
                    let before = not_full.map(|_| tat - cost);
                    let shared = before > lease.tat;
                    return Ok(Outcome::Taken { tokens, tat, shared });
                }
                Err(row) => seen = tat(&row),
            }
        }
        // Each update was refused. The first one may have been a wrong guess. Before each later one, another
        // environment changed the row.
        Ok(Outcome::Empty { until: now, tat: seen.unwrap_or(now) })
    }

    fn is_wrong(&self, tat: i64, now: i64) -> bool {
        tat > now + self.window() + MAX_SKEW_MILLIS
    }

    /// Returns the time in which an empty bucket fills, in milliseconds.
    fn window(&self) -> i64 {
        i64::from(self.limit.burst()) * self.limit.interval_millis()
    }

    /// Returns the new row, or the old one if the condition does not hold.
    async fn update(&self, update: Update, now: i64) -> Result<Result<Item, Item>, StoreError> {
        let number = |number: i64| AttributeValue::N(number.to_string());
        let window = self.window();
        let expires_at = (now + window) / 1_000 + RETENTION_SECONDS;
        let request = self
            .table
            .client()
            .update_item()
            .table_name(self.table.name())
            .set_key(Some(Key::id(self.id).item()))
            .return_values(ReturnValue::UpdatedNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .expression_attribute_values(":now", number(now))
            .expression_attribute_values(":expiresAt", number(expires_at));
        let request = match update {
            Update::Extend { cost, limit } => request
                .update_expression("SET tat = tat + :cost, expiresAt = :expiresAt")
                .condition_expression("tat BETWEEN :now AND :limit")
                .expression_attribute_values(":cost", number(cost))
                .expression_attribute_values(":limit", number(limit)),
            Update::Start { cost } => request
                .update_expression("SET tat = :tat, expiresAt = :expiresAt")
                .condition_expression("attribute_not_exists(tat) OR tat < :now OR tat > :wrong")
                .expression_attribute_values(":tat", number(now + cost))
                .expression_attribute_values(":wrong", number(now + window + MAX_SKEW_MILLIS)),
        };
        let error = match request.send().await {
            Ok(updated) => return Ok(Ok(updated.attributes.unwrap_or_default())),
            Err(error) => error,
        };
        match error.as_service_error() {
            Some(UpdateItemError::ConditionalCheckFailedException(refused)) => {
                Ok(Err(refused.item.clone().unwrap_or_default()))
            }
            _ => Err(error.into()),
        }
    }
}

/// Returns the row's `tat`. Returns `None` if the row does not exist, or if its `tat` is not an integer.
fn tat(item: &Item) -> Option<i64> {
    item.get("tat").and_then(|tat| tat.as_n().ok()).and_then(|tat| tat.parse().ok())
}
