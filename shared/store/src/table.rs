//! A DynamoDB table and the keys of its rows.

use std::collections::HashMap;

use aws_sdk_dynamodb::{Client, types::AttributeValue};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Item, StoreError, from_item};

/// A row's key: the partition key, and the sort key if the table has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(Vec<(&'static str, Part)>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    Number(String),
}

impl Key {
    /// Creates the key of a row in a table without a sort key. The partition key is the attribute `id`.
    #[must_use]
    pub fn id(id: impl Into<String>) -> Self {
        Self(vec![("id", Part::Text(id.into()))])
    }

    /// Creates a key of two parts, each with the name of its attribute.
    #[must_use]
    pub fn pair(
        partition: (&'static str, impl Into<String>),
        sort: (&'static str, impl Into<String>),
    ) -> Self {
        let (partition, sort) =
            ((partition.0, Part::Text(partition.1.into())), (sort.0, Part::Text(sort.1.into())));
        Self(vec![partition, sort])
    }

    /// Creates a key whose sort key is a number. The number is given as text, in the form that DynamoDB returns.
    #[must_use]
    pub fn numbered(
        partition: (&'static str, impl Into<String>),
        sort: (&'static str, impl Into<String>),
    ) -> Self {
        let (partition, sort) =
            ((partition.0, Part::Text(partition.1.into())), (sort.0, Part::Number(sort.1.into())));
        Self(vec![partition, sort])
    }

    /// Returns the attribute name of the partition key. Every row of the table has it, so a condition on it is
    /// a condition on the row's existence.
    pub(crate) fn partition_name(&self) -> &'static str {
        self.0[0].0
    }

    /// Returns the key's attributes.
    #[must_use]
    pub fn item(&self) -> Item {
        let attribute = |part: &Part| match part {
            Part::Text(text) => AttributeValue::S(text.clone()),
            Part::Number(number) => AttributeValue::N(number.clone()),
        };
        self.0.iter().map(|(name, part)| ((*name).to_owned(), attribute(part))).collect()
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, (_, Part::Text(value) | Part::Number(value))) in self.0.iter().enumerate() {
            write!(f, "{}{value}", if i == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

/// A handle for a table of a service.
#[derive(Clone, Debug)]
pub struct Table {
    client: Client,
    name: String,
}

impl Table {
    /// Creates a handle for the table with this name.
    #[must_use]
    pub fn new(client: Client, name: impl Into<String>) -> Self {
        Self { client, name: name.into() }
    }

    /// Returns the client, for calls that this crate does not offer.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the table's name in the account.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the region of the table.
    #[must_use]
    pub fn region(&self) -> Option<String> {
        self.client.config().region().map(ToString::to_string)
    }

    /// Reads one row with strong consistency.
    pub async fn get<R: DeserializeOwned>(&self, key: &Key) -> Result<Option<R>, StoreError> {
        let response = self
            .client
            .get_item()
            .table_name(&self.name)
            .set_key(Some(key.item()))
            .consistent_read(true)
            .send()
            .await?;
        response.item.map(|item| decode(key, item)).transpose()
    }
}

/// Maps each `#name` in the expressions to the attribute `name`. Returns `None` if there is no such name, since
/// DynamoDB refuses an empty map.
pub(crate) fn names<'a>(
    expressions: impl IntoIterator<Item = &'a str>,
) -> Option<HashMap<String, String>> {
    let words = expressions.into_iter().flat_map(|expression| {
        expression.split(|c: char| c != '#' && c != '_' && !c.is_ascii_alphanumeric())
    });
    let names: HashMap<_, _> = words
        .filter_map(|word| Some((word.to_owned(), word.strip_prefix('#')?.to_owned())))
        .collect();
    (!names.is_empty()).then_some(names)
}

pub(crate) fn decode<R: DeserializeOwned>(key: &Key, item: Item) -> Result<R, StoreError> {
    from_item(item, || key.to_string())
}

/// Serializes a row to DynamoDB's attributes.
///
/// `serde_dynamo::to_item` would build the map three times, which costs more than the serialization.
pub fn to_item(row: &impl Serialize) -> Result<Item, serde_dynamo::Error> {
    match serde_dynamo::to_attribute_value(row)? {
        AttributeValue::M(item) => Ok(item),
        _ => Err(serde::ser::Error::custom("a row is a map of attributes")),
    }
}

/// Serializes a row to DynamoDB's attributes, including its key.
pub(crate) fn encode<R: Serialize>(key: &Key, row: &R) -> Result<Item, StoreError> {
    let mut item = to_item(row).map_err(|reason| StoreError::Corrupt {
        row: key.to_string(),
        reason: reason.to_string(),
    })?;
    item.extend(key.item());
    Ok(item)
}
