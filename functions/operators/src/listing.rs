//! Pages of a list in the order of time.
//!
//! The sort key of the index, or of the table, is `<time>/<id>`, which is unique. A page token contains the sort key of the
//! last entry of the page. It contains no hash of a key, which the start key of DynamoDB would.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use contracts::{OperatorId, Timestamp};
use lambda::http::{self, Caller, FieldError, Problem, Request};
use store::{Item, Page, Query, StoreError};
use uuid::Uuid;

use crate::named_operator;

const DEFAULT_LIMIT: i32 = 25;
const MAX_LIMIT: i32 = 100;
const INVALID_TOKEN: &str = "is not a valid page token; give the previous page's `next` unchanged, or omit it to start over";

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    OldestFirst,
    NewestFirst,
}

/// The query parameters of a list.
#[derive(Debug, PartialEq)]
pub(crate) struct Listing {
    operator: OperatorId,
    order: Order,
    limit: i32,
    /// The sort key of the last entry of the previous page.
    after: String,
}

/// The position after an entry of a list. Its text is `<operator id>/<time>/<id>` in base64url.
///
/// It is not signed. A changed token only selects another position in the same operator's list.
struct PageToken {
    /// The operator that the page was made for. The token is valid for this operator only.
    operator: OperatorId,
    /// The sort key of the last entry of the page.
    after: String,
}

impl PageToken {
    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}", self.operator, self.after))
    }

    /// Returns `None` for a text that is not a token.
    fn parse(text: &str) -> Option<Self> {
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        let (operator, after) = text.split_once('/')?;
        let (time, id) = after.split_once('/')?;
        let is_position = time.parse::<Timestamp>().is_ok() && id.parse::<Uuid>().is_ok();
        let operator = operator.parse().ok()?;
        is_position.then(|| Self { operator, after: after.to_owned() })
    }
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
    pub(crate) fn from_request(caller: &Caller, request: &Request) -> Result<Self, Problem> {
        Self::read_query(caller, request, Order::OldestFirst, false)
    }

    /// Reads the query parameters `limit`, `next` and `operatorId` of a list of what belongs to one operator. Without
    /// `operatorId`, it is the caller's. Returns 403 if a caller who is not an administrator names another operator.
    pub(crate) fn of_operator(
        caller: &Caller,
        request: &Request,
        order: Order,
    ) -> Result<Self, Problem> {
        Self::read_query(caller, request, order, true)
    }

    fn read_query(
        caller: &Caller,
        request: &Request,
        order: Order,
        may_name_operator: bool,
    ) -> Result<Self, Problem> {
        // A sort key begins with the digits of a year. DynamoDB does not accept the empty text.
        let start = match order {
            Order::OldestFirst => "0",
            Order::NewestFirst => ":",
        };
        let mut listing = Self {
            operator: caller.operator,
            order,
            limit: DEFAULT_LIMIT,
            after: start.to_owned(),
        };
        let mut token = None;
        let mut errors = Vec::new();
        let mut parameters: Vec<_> = request.query_string_parameters.iter().collect();
        parameters.sort_unstable();
        for (name, value) in parameters {
            let result = match name {
                "limit" => limit(value).map(|limit| listing.limit = limit),
                "next" => next(value).map(|next| token = Some(next)),
                "operatorId" if may_name_operator => {
                    named_operator(value).map(|named| listing.operator = named)
                }
                _ => {
                    let known = if may_name_operator {
                        "limit, next or operatorId"
                    } else {
                        "limit or next"
                    };
                    errors.push(http::unknown_parameter(name, known));
                    continue;
                }
            };
            if let Err(message) = result {
                errors.push(FieldError::new(format!("query {name}"), message));
            }
        }
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
        caller.require_operator(listing.operator)?;
        if let Some(token) = token {
            if token.operator != listing.operator {
                return Err(Problem::invalid(vec![FieldError::new("query next", INVALID_TOKEN)]));
            }
            listing.after = token.after;
        }
        Ok(listing)
    }

    /// Returns the operator whose entries are listed.
    pub(crate) fn operator(&self) -> OperatorId {
        self.operator
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
        let token = next.and(last).map(|last| {
            let token = PageToken { operator: self.operator, after: last.clone() };
            token.text()
        });
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

fn next(value: &str) -> Result<PageToken, String> {
    PageToken::parse(value).ok_or_else(|| INVALID_TOKEN.to_owned())
}
