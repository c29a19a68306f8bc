//! Pages of events: tokens, positions, and the merge of the partitions of an index.

use std::{cmp::Ordering, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::Timestamp;
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use store::{EventRow, Item, Key, Query, StoreError, from_item};

/// A page with events of this size, in bytes, gets no further event. Its last event may add 256 KiB. A response of
/// Lambda has at most 6 MB. It contains the body as a JSON string, in which each quotation mark is escaped and takes
/// two bytes.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;
/// The number of bytes of the query's hash in a token.
const HASH_BYTES: usize = 8;

/// An event in an index. The order is that of time; the other fields order events of the same time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    pub(crate) occurred_at: Timestamp,
    pub(crate) entity: String,
    pub(crate) sequence: u64,
}

impl Entry {
    pub(crate) fn key(&self) -> Key {
        Key::numbered(("entity", &self.entity), ("sequence", self.sequence.to_string()))
    }
}

impl From<&EventRow> for Entry {
    fn from(row: &EventRow) -> Self {
        Self { occurred_at: row.occurred_at, entity: row.entity.clone(), sequence: row.sequence }
    }
}

/// Where the next page begins. A token is not signed. A forged one shows nothing that the caller may not see, because
/// each row is compared with the caller's operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// The start of the period, which may depend on the time of the first request.
    pub(crate) from: Timestamp,
    /// The last event of the previous page.
    pub(crate) last: Entry,
}

impl Position {
    /// Returns the token. It is valid for this query only.
    pub(crate) fn token(&self, query: &str) -> Result<String, serde_json::Error> {
        let mut bytes = hash(query).to_vec();
        bytes.extend(serde_json::to_vec(self)?);
        Ok(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a token of this query. Returns `None` for any other text.
    pub(crate) fn parse(query: &str, token: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (hashed, position) = bytes.split_at_checked(HASH_BYTES)?;
        (hashed == hash(query)).then(|| serde_json::from_slice(position).ok()).flatten()
    }
}

fn hash(query: &str) -> [u8; HASH_BYTES] {
    let hash = Sha256::digest(query);
    std::array::from_fn(|index| hash[index])
}

/// The events of a page.
#[derive(Debug)]
pub(crate) struct Page {
    limit: usize,
    bytes: usize,
    pub(crate) events: Vec<String>,
    /// The event after which the next page begins. It may be one that is not shown.
    pub(crate) last: Option<Entry>,
    /// Whether there may be more events.
    pub(crate) more: bool,
}

impl Page {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, events: Vec::new(), last: None, more: false }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.events.len() >= self.limit || self.bytes >= MAX_PAGE_BYTES
    }

    pub(crate) fn add(&mut self, row: &EventRow) -> Result<(), StoreError> {
        let event = shown(row).map_err(|error| StoreError::Corrupt {
            row: Entry::from(row).key().to_string(),
            reason: error.to_string(),
        })?;
        self.bytes += event.len();
        self.events.push(event);
        self.last = Some(row.into());
        Ok(())
    }
}

/// Returns the event as a caller sees it: the ids of payment methods in Fieldstation's own events are hidden. The text
/// of every other value is unchanged. In such an event the members of `data` are sorted by name.
fn shown(row: &EventRow) -> serde_json::Result<String> {
    #[derive(Deserialize, Serialize)]
    struct Detail<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
        #[serde(borrow)]
        data: BTreeMap<String, &'a RawValue>,
    }

    const SECRET: &str = "paymentMethod";
    // The log keys of other systems' entities begin with the operator and a slash.
    let is_own = !row.entity.contains('/');
    if !is_own || !row.detail.contains(SECRET) {
        return Ok(row.detail.clone());
    }
    let mut detail: Detail<'_> = serde_json::from_str(&row.detail)?;
    let hidden: &RawValue = serde_json::from_str(r#""hidden""#)?;
    if let Some(secret) = detail.data.get_mut(SECRET) {
        *secret = hidden;
    }
    serde_json::to_string(&detail)
}

/// A partition of an index, which is read from the newest event to the oldest.
#[derive(Debug)]
pub(crate) struct Partition<'t> {
    query: Query<'t>,
    /// What was read and not taken, the newest last.
    entries: Vec<Entry>,
    next: Option<Item>,
    is_read: bool,
}

impl<'t> Partition<'t> {
    /// Creates the reader of what the query returns, in descending order.
    pub(crate) fn new(query: Query<'t>) -> Self {
        Self { query, entries: Vec::new(), next: None, is_read: false }
    }

    /// Reads until the newest entry is known. Entries of the same time have no order in the index, so all of them must be
    /// read first.
    pub(crate) async fn fill(&mut self) -> Result<(), StoreError> {
        let is_known = |entries: &[Entry]| match entries {
            [oldest, .., newest] => oldest.occurred_at < newest.occurred_at,
            _ => false,
        };
        while !self.is_read && !is_known(&self.entries) {
            let page = self.query.page(self.next.take()).await?;
            for item in page.items {
                self.entries
                    .push(from_item(item, || "of an index of the events table".to_owned())?);
            }
            self.entries.sort_unstable();
            self.next = page.next;
            self.is_read = self.next.is_none();
        }
        Ok(())
    }

    /// Returns the newest entry.
    pub(crate) fn newest(&self) -> Option<&Entry> {
        self.entries.last()
    }
}

/// Takes the newest entry of all partitions.
pub(crate) async fn take_newest(
    partitions: &mut [Partition<'_>],
) -> Result<Option<Entry>, StoreError> {
    try_join_all(partitions.iter_mut().map(Partition::fill)).await?;
    let by_newest = |a: &&mut Partition<'_>, b: &&mut Partition<'_>| -> Ordering {
        a.newest().cmp(&b.newest())
    };
    Ok(partitions.iter_mut().max_by(by_newest).and_then(|newest| newest.entries.pop()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        let last =
            Entry { occurred_at: Timestamp::from_millis(5), entity: "site#1".into(), sequence: 7 };
        Position { from: Timestamp::from_millis(1), last }
    }

    #[test]
    fn a_token_is_valid_for_its_query_only() {
        let token = position().token("a").expect("a token");
        assert_eq!(Position::parse("a", &token), Some(position()));
        assert_eq!(Position::parse("b", &token), None);
        for wrong in ["", "x", "%%%", "AAAA", &token[..token.len() - 2], &token[2..]] {
            assert_eq!(Position::parse("a", wrong), None, "{wrong}");
        }
    }
}
