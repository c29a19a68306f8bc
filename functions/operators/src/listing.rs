//! Pages of a list in the order of time.
//!
//! The sort key of the index, or of the table, is `<time>/<id>`, which is unique. A page token is the sort key of the last entry of the
//! page. It contains no hash of a key, which the start key of DynamoDB would.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::Timestamp;
use lambda::http::{FieldError, Problem, Request};
use store::{Item, Page, Query, StoreError};
use uuid::Uuid;

const DEFAULT_LIMIT: i32 = 25;
const MAX_LIMIT: i32 = 100;

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    OldestFirst,
    NewestFirst,
}

/// The query parameters of a list.
#[derive(Debug, PartialEq)]
pub(crate) struct Listing {
    order: Order,
    limit: i32,
    /// The sort key of the last entry of the previous page.
    after: String,
}

/// Returns the sort key of an entry.
pub(crate) fn position(created_at: Timestamp, id: Uuid) -> String {
    format!("{created_at}/{id}")
}

/// Returns the time in the sort key of an entry.
pub(crate) fn time(item: &Item, sort_key: &str) -> Option<Timestamp> {
    let (time, _) = item.get(sort_key)?.as_s().ok()?.split_once('/')?;
    time.parse().ok()
}

impl Listing {
    /// Reads the query parameters `limit` and `next` of a list in the order of creation.
    pub(crate) fn from_request(request: &Request) -> Result<Self, Problem> {
        Self::read_query(request, Order::OldestFirst, "limit or next", |_, _| None)
    }

    /// Reads the query parameters `limit`, `next` and one more. `read` reads the value of that one.
    pub(crate) fn with_parameter(
        request: &Request,
        order: Order,
        parameter: &str,
        mut read: impl FnMut(&str) -> Result<(), String>,
    ) -> Result<Self, Problem> {
        let known = format!("limit, next or {parameter}");
        Self::read_query(request, order, &known, |name, value| {
            (name == parameter).then(|| read(value))
        })
    }

    fn read_query(
        request: &Request,
        order: Order,
        known: &str,
        mut read: impl FnMut(&str, &str) -> Option<Result<(), String>>,
    ) -> Result<Self, Problem> {
        // A sort key begins with the digits of a year. DynamoDB does not accept the empty text.
        let start = match order {
            Order::OldestFirst => "0",
            Order::NewestFirst => ":",
        };
        let mut listing = Self { order, limit: DEFAULT_LIMIT, after: start.to_owned() };
        let mut errors = Vec::new();
        let mut parameters: Vec<_> = request.query_string_parameters.iter().collect();
        parameters.sort_unstable();
        for (name, value) in parameters {
            let result = match name {
                "limit" => limit(value).map(|limit| listing.limit = limit),
                "next" => after(value).map(|after| listing.after = after),
                _ => {
                    read(name, value).unwrap_or_else(|| Err(format!("is not known; give {known}")))
                }
            };
            if let Err(message) = result {
                errors.push(FieldError::new(format!("query {name}"), message));
            }
        }
        if errors.is_empty() { Ok(listing) } else { Err(Problem::invalid(errors)) }
    }

    /// Reads the page. The key condition of `query` must compare `sort_key` with `:after`: `>` for the oldest first, and
    /// `<` for the newest first. Returns the rows and the token of the next page.
    pub(crate) async fn read(
        self,
        query: Query<'_>,
        sort_key: &str,
    ) -> Result<(Vec<Item>, Option<String>), StoreError> {
        let query = query.descending(self.order == Order::NewestFirst);
        let Page { items, next } =
            query.text("after", self.after).limit(self.limit).page(None).await?;
        let last = items.last().and_then(|item| item.get(sort_key)?.as_s().ok());
        let token = next.and(last).map(|last| URL_SAFE_NO_PAD.encode(last));
        Ok((items, token))
    }
}

fn limit(value: &str) -> Result<i32, String> {
    value
        .parse()
        .ok()
        .filter(|limit| (1..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| format!("is {value:?}; give a number from 1 to {MAX_LIMIT}"))
}

fn after(value: &str) -> Result<String, String> {
    let position =
        URL_SAFE_NO_PAD.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let is_valid = |position: &String| {
        position.split_once('/').is_some_and(|(time, id)| {
            time.parse::<Timestamp>().is_ok() && id.parse::<Uuid>().is_ok()
        })
    };
    position.filter(is_valid).ok_or_else(|| {
        "is not a valid page token; give the previous page's `next` unchanged, or omit it to start \
         over"
            .to_owned()
    })
}
