//! Reads several rows: by a query, by a scan, or by their keys.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    operation::query::builders::QueryFluentBuilder,
    types::{AttributeValue, KeysAndAttributes, Select},
};
use serde::de::DeserializeOwned;

use crate::{Key, StoreError, Table, table::names};

/// The attributes of a row.
pub type Item = HashMap<String, AttributeValue>;

/// The maximum number of keys of a `BatchGetItem` call.
const MAX_KEYS: usize = 100;
/// The read fails after this number of consecutive calls that left keys unprocessed. The count restarts at one with a call
/// that processed some of its keys, and at zero with a call that processed all.
const MAX_ATTEMPTS: u32 = 4;
/// The pause after a call that left keys unprocessed. It doubles with each call in a row that makes no progress.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// A query or a scan of a table or of one of its indexes. In its expressions, `#name` refers to
/// the attribute `name`, and `:name` to the value that is bound to that name.
#[derive(Clone, Debug)]
pub struct Query<'t> {
    table: &'t Table,
    /// `None` for a scan.
    condition: Option<&'static str>,
    projection: Option<&'static str>,
    index: Option<&'static str>,
    values: Item,
    limit: Option<i32>,
    descending: bool,
    consistent: bool,
}

/// The result of one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The rows.
    pub items: Vec<Item>,
    /// The start of the next page. `None` on the last page.
    pub next: Option<Item>,
}

/// A read of rows by their keys.
#[derive(Debug)]
pub struct BatchGet<'t> {
    table: &'t Table,
    keys: Vec<Item>,
    projection: Option<&'static str>,
    consistent: bool,
}

impl Table {
    /// Creates a query with the given key condition. It reads the rows in the order of the sort key.
    #[must_use]
    pub fn query(&self, condition: &'static str) -> Query<'_> {
        Query { condition: Some(condition), ..self.scan() }
    }

    /// Creates a scan, which reads all rows.
    #[must_use]
    pub fn scan(&self) -> Query<'_> {
        Query {
            table: self,
            condition: None,
            projection: None,
            index: None,
            values: Item::new(),
            limit: None,
            descending: false,
            consistent: false,
        }
    }

    /// Creates a read of the rows with these keys, which must be distinct. A row that does not exist is left out of the
    /// result.
    #[must_use]
    pub fn batch_get(&self, keys: impl IntoIterator<Item = Key>) -> BatchGet<'_> {
        let keys = keys.into_iter().map(|key| key.item()).collect();
        BatchGet { table: self, keys, projection: None, consistent: false }
    }
}

impl Query<'_> {
    /// Reads an index instead of the table.
    #[must_use]
    pub fn index(mut self, name: &'static str) -> Self {
        self.index = Some(name);
        self
    }

    /// Binds a text to `:name`.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "callers pass ids, times and literals")]
    pub fn text(mut self, name: &str, value: impl ToString) -> Self {
        self.values.insert(format!(":{name}"), AttributeValue::S(value.to_string()));
        self
    }

    /// Binds a number to `:name`.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "callers pass ids, times and literals")]
    pub fn number(mut self, name: &str, value: impl ToString) -> Self {
        self.values.insert(format!(":{name}"), AttributeValue::N(value.to_string()));
        self
    }

    /// Reads only these attributes.
    #[must_use]
    pub fn project(mut self, attributes: &'static str) -> Self {
        self.projection = Some(attributes);
        self
    }

    /// Reads at most `rows` rows per page.
    #[must_use]
    pub fn limit(mut self, rows: i32) -> Self {
        self.limit = Some(rows);
        self
    }

    /// Reads in descending order of the sort key if `descending` is true.
    #[must_use]
    pub fn descending(mut self, descending: bool) -> Self {
        self.descending = descending;
        self
    }

    /// Reads with strong consistency. DynamoDB refuses this for a global secondary index.
    #[must_use]
    pub fn consistent(mut self) -> Self {
        self.consistent = true;
        self
    }

    /// Reads one page, in one call.
    pub async fn page(&self, start: Option<Item>) -> Result<Page, StoreError> {
        let (client, table) = (self.table.client(), self.table.name());
        if let Some(condition) = self.condition {
            let query = self.request(condition).set_exclusive_start_key(start);
            let response = query.send().await?;
            return Ok(Page::new(response.items, response.last_evaluated_key));
        }
        let response = client
            .scan()
            .table_name(table)
            .set_index_name(self.index.map(str::to_owned))
            .set_projection_expression(self.projection.map(str::to_owned))
            .set_expression_attribute_names(self.names())
            .set_consistent_read(self.consistent.then_some(true))
            .set_limit(self.limit)
            .set_exclusive_start_key(start)
            .send()
            .await?;
        Ok(Page::new(response.items, response.last_evaluated_key))
    }

    fn request(&self, condition: &str) -> QueryFluentBuilder {
        self.table
            .client()
            .query()
            .table_name(self.table.name())
            .set_index_name(self.index.map(str::to_owned))
            .key_condition_expression(condition)
            .set_projection_expression(self.projection.map(str::to_owned))
            .set_expression_attribute_names(self.names())
            .set_expression_attribute_values(Some(self.values.clone()))
            .set_scan_index_forward(self.descending.then_some(false))
            .set_consistent_read(self.consistent.then_some(true))
            .set_limit(self.limit)
    }

    /// Counts the rows of a query, up to `max`. Once that number is reached, no further page is read.
    pub async fn count(&self, max: u32) -> Result<u32, StoreError> {
        let condition = self.condition.unwrap_or_default();
        let (mut count, mut start) = (0_u32, None);
        loop {
            let query = self.request(condition).select(Select::Count);
            let response = query.set_exclusive_start_key(start).send().await?;
            count = count.saturating_add(u32::try_from(response.count).unwrap_or_default());
            start = response.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() || count >= max {
                return Ok(count.min(max));
            }
        }
    }

    /// Reads all pages.
    pub async fn all(&self) -> Result<Vec<Item>, StoreError> {
        let Page { mut items, mut next } = self.page(None).await?;
        while next.is_some() {
            let page = self.page(next).await?;
            items.extend(page.items);
            next = page.next;
        }
        Ok(items)
    }

    fn names(&self) -> Option<HashMap<String, String>> {
        names([self.condition, self.projection].into_iter().flatten())
    }
}

impl Page {
    fn new(items: Option<Vec<Item>>, next: Option<Item>) -> Self {
        // Emulators return an empty key on the last page.
        Self { items: items.unwrap_or_default(), next: next.filter(|key| !key.is_empty()) }
    }
}

impl BatchGet<'_> {
    /// Reads only these attributes.
    #[must_use]
    pub fn project(mut self, attributes: &'static str) -> Self {
        self.projection = Some(attributes);
        self
    }

    /// Reads with strong consistency.
    #[must_use]
    pub fn consistent(mut self) -> Self {
        self.consistent = true;
        self
    }

    /// Reads all rows, in no particular order. Keys that DynamoDB leaves unprocessed are sent again after a
    /// pause. The pause grows while DynamoDB processes none of a call's keys.
    pub async fn send(self) -> Result<Vec<Item>, StoreError> {
        let (client, table, mut keys) = (self.table.client(), self.table.name(), self.keys);
        let mut rows = Vec::with_capacity(keys.len());
        let mut attempts = 0;
        while !keys.is_empty() {
            let batch = keys.split_off(keys.len().saturating_sub(MAX_KEYS));
            let sent = batch.len();
            let request = KeysAndAttributes::builder()
                .set_keys(Some(batch))
                .set_projection_expression(self.projection.map(str::to_owned))
                .set_consistent_read(self.consistent.then_some(true))
                .build()
                .map_err(|error| StoreError::Internal(error.to_string()))?;
            let response = client.batch_get_item().request_items(table, request).send().await?;
            rows.extend(response.responses.unwrap_or_default().remove(table).unwrap_or_default());
            let unprocessed = response.unprocessed_keys.unwrap_or_default().remove(table);
            let unprocessed = unprocessed.map(|unprocessed| unprocessed.keys).unwrap_or_default();
            if unprocessed.is_empty() {
                attempts = 0;
                continue;
            }
            attempts = if unprocessed.len() < sent { 1 } else { attempts + 1 };
            if attempts == MAX_ATTEMPTS {
                let reason = format!("BatchGetItem left {} keys unprocessed", unprocessed.len());
                return Err(StoreError::Transient(reason));
            }
            keys.extend(unprocessed);
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(attempts - 1)).await;
        }
        Ok(rows)
    }
}

/// Deserializes a row. `name` returns the name of the row for the error.
pub fn from_item<R: DeserializeOwned>(
    item: Item,
    name: impl FnOnce() -> String,
) -> Result<R, StoreError> {
    serde_dynamo::from_item(item)
        .map_err(|error| StoreError::Corrupt { row: name(), reason: error.to_string() })
}
