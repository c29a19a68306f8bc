//! A fresh DynamoDB in memory, with every table of the templates.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
};

use aws_sdk_dynamodb::{
    Client,
    config::{
        ConfigBag, Intercept, RuntimeComponents,
        interceptors::{
            AfterDeserializationInterceptorContextRef, BeforeSerializationInterceptorContextMut,
            BeforeTransmitInterceptorContextRef,
        },
    },
    error::BoxError,
    operation::{
        delete_item::{DeleteItemInput, DeleteItemOutput},
        put_item::{PutItemInput, PutItemOutput},
        transact_write_items::{TransactWriteItemsInput, TransactWriteItemsOutput},
        update_item::{UpdateItemInput, UpdateItemOutput},
    },
    types::{AttributeValue, ConsumedCapacity, ReturnConsumedCapacity},
};
use dynoxide::{Database, server};
use serde_json::{Map, Value};
use store::{EventRow, Outbox, Table};
use tokio::net::TcpListener;

use crate::{http::config, template::Template};

/// sites' table.
pub const SITES: &str = "SitesTable";
/// inventory's table.
pub const INVENTORY: &str = "InventoryTable";
/// devices' table.
pub const DEVICES: &str = "DevicesTable";
/// billing's table.
pub const BILLING: &str = "BillingTable";
/// alerting's table.
pub const ALERTING: &str = "AlertingTable";
/// telemetry's table.
pub const READINGS: &str = "ReadingsTable";
/// telemetry's counters of refused bundles.
pub const REFUSALS: &str = "RefusalsTable";
/// Outbox and event log.
pub const EVENTS: &str = "EventsTable";
/// failures' table.
pub const FAILURES: &str = "FailuresTable";

/// What decides how a table behaves. The rest (billing, backups, encryption) does not concern rows.
const KEYS_AND_INDEXES: [&str; 3] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes"];

/// The keys and indexes of every table of the templates, by its logical id, as `CreateTable` takes them.
fn tables() -> &'static BTreeMap<String, Value> {
    // Read once in a test program: each test starts a database of its own.
    static TABLES: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let template = Template::read();
        let tables = template.resources("AWS::DynamoDB::Table").into_iter().map(|(id, table)| {
            let properties = table["Properties"].as_object().into_iter().flatten();
            let kept = properties.filter(|(name, _)| KEYS_AND_INDEXES.contains(&name.as_str()));
            let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
            (id.to_owned(), kept.collect::<Map<_, _>>().into())
        });
        tables.collect()
    })
}

/// A database in memory with all tables, empty.
///
/// # Panics
/// If a template is not readable, or a table can't be created.
pub(crate) fn database() -> Database {
    let database = Database::memory().expect("a database in memory");
    for (name, table) in tables() {
        let mut table = table.clone();
        table["TableName"] = name.as_str().into();
        table["BillingMode"] = "PAY_PER_REQUEST".into();
        let request = serde_json::from_value(table).expect("CreateTable's request");
        database.create_table(request).expect("a new table");
    }
    database
}

/// DynamoDB with all tables, empty. Gone when the test's runtime ends.
#[derive(Debug)]
pub struct Dynamo {
    client: Client,
    /// Reads for the tests, which are not to be counted.
    reader: Client,
    meter: Meter,
    endpoint: String,
}

impl Dynamo {
    /// Starts one.
    ///
    /// # Panics
    /// Where it can't.
    pub async fn start() -> Self {
        let database = database();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(server::serve_with_shutdown(listener, database, std::future::pending()));

        let meter = Meter::default();
        let config = config(&endpoint);
        let metered =
            aws_sdk_dynamodb::config::Builder::from(&config).interceptor(meter.clone()).build();
        Self { client: Client::from_conf(metered), reader: Client::new(&config), meter, endpoint }
    }

    /// Where it is, for another process.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A client whose calls are counted. It does not repeat a call that failed.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// One of the tables.
    #[must_use]
    pub fn table(&self, name: &str) -> Table {
        Table::new(self.client(), name)
    }

    /// The outbox.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.table(EVENTS))
    }

    /// The calls since it was last asked, by operation, with the write units that they consumed.
    ///
    /// # Panics
    /// Where a test's thread panicked meanwhile.
    #[must_use]
    pub fn take_usage(&self) -> Usage {
        std::mem::take(&mut *self.meter.0.lock().expect("no panic while counting"))
    }

    /// All rows of a table, in the order of their text.
    ///
    /// # Panics
    /// Where they can't be read.
    pub async fn rows(&self, table: &str) -> Vec<Value> {
        let scan = self.reader.scan().table_name(table).consistent_read(true);
        let items = scan.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let items = items.expect("a scan");
        let mut rows: Vec<Value> = serde_dynamo::from_items(items).expect("rows as JSON");
        rows.iter_mut().for_each(Value::sort_all_objects);
        rows.sort_by_cached_key(Value::to_string);
        rows
    }

    /// All rows of all tables: equal before and after what changes nothing.
    pub async fn everything(&self) -> BTreeMap<&'static str, Vec<Value>> {
        let mut all = BTreeMap::new();
        for name in tables().keys() {
            all.insert(name.as_str(), self.rows(name).await);
        }
        all
    }

    /// One row of a table with the key `id`.
    ///
    /// # Panics
    /// Where it can't be read.
    pub async fn row(&self, table: &str, id: &str) -> Option<Value> {
        self.rows(table).await.into_iter().find(|row| row["id"] == id)
    }

    /// Puts a row as it is.
    ///
    /// # Panics
    /// Where it can't be put.
    pub async fn put(&self, table: &str, row: Value) {
        let item = serde_dynamo::to_item(row).expect("a row");
        let put = self.reader.put_item().table_name(table).set_item(Some(item)).send();
        put.await.expect("the row put");
    }

    /// An entity's events in their order. What holds for every entity is asserted: the sequence has
    /// no gap, and the row says of the event what its envelope says.
    ///
    /// # Panics
    /// Where that does not hold.
    pub async fn events(&self, entity: impl Into<contracts::Entity>) -> Vec<EventRow> {
        let entity = entity.into();
        let answer = self
            .reader
            .query()
            .table_name(EVENTS)
            .key_condition_expression("entity = :entity")
            .expression_attribute_values(":entity", AttributeValue::S(entity.to_string()))
            .consistent_read(true)
            .send()
            .await
            .expect("a query");
        let items = answer.items.unwrap_or_default();
        let rows: Vec<EventRow> = serde_dynamo::from_items(items).expect("rows of events");
        for (row, sequence) in rows.iter().zip(1..) {
            let metadata = row.envelope().expect("an envelope").metadata;
            assert_eq!(row.sequence, sequence, "{entity} has a gap");
            assert_eq!(metadata.sequence, sequence);
            assert_eq!(metadata.entity, entity);
            assert_eq!(metadata.kind, row.kind);
            assert_eq!(metadata.occurred_at, row.occurred_at);
            assert_eq!(metadata.correlation_id, row.correlation_id);
            assert_eq!(metadata.event_id, contracts::EventId::of(&entity, sequence));
            assert_eq!(row.source, entity.kind.source());
        }
        rows
    }

    /// The types of an entity's events in their order.
    pub async fn story(&self, entity: impl Into<contracts::Entity>) -> Vec<String> {
        self.events(entity).await.into_iter().map(|row| row.kind).collect()
    }
}

/// What calls cost.
#[derive(Debug, Default, PartialEq)]
pub struct Usage {
    /// Calls by operation.
    pub calls: BTreeMap<String, u32>,
    /// Write units of those that went through.
    pub write_units: f64,
}

/// Counts calls, and what they cost, on their way.
#[derive(Clone, Debug, Default)]
struct Meter(Arc<Mutex<Usage>>);

impl Meter {
    fn charge<'a>(&self, consumed: impl IntoIterator<Item = &'a ConsumedCapacity>) {
        // DynamoDB tells a transaction's units as write units, a single write's as units.
        let units: f64 = consumed
            .into_iter()
            .filter_map(|consumed| consumed.write_capacity_units.or(consumed.capacity_units))
            .sum();
        self.0.lock().expect("no panic while counting").write_units += units;
    }
}

impl Intercept for Meter {
    fn name(&self) -> &'static str {
        "Meter"
    }

    fn modify_before_serialization(
        &self,
        context: &mut BeforeSerializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let input = context.input_mut();
        let told = Some(ReturnConsumedCapacity::Total);
        if let Some(put) = input.downcast_mut::<PutItemInput>() {
            put.return_consumed_capacity = told;
        } else if let Some(update) = input.downcast_mut::<UpdateItemInput>() {
            update.return_consumed_capacity = told;
        } else if let Some(delete) = input.downcast_mut::<DeleteItemInput>() {
            delete.return_consumed_capacity = told;
        } else if let Some(transaction) = input.downcast_mut::<TransactWriteItemsInput>() {
            transaction.return_consumed_capacity = told;
        }
        Ok(())
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let target = context.request().headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        *self.0.lock().expect("no panic while counting").calls.entry(operation).or_default() += 1;
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Ok(output) = context.output_or_error() else { return Ok(()) };
        if let Some(put) = output.downcast_ref::<PutItemOutput>() {
            self.charge(&put.consumed_capacity);
        } else if let Some(update) = output.downcast_ref::<UpdateItemOutput>() {
            self.charge(&update.consumed_capacity);
        } else if let Some(delete) = output.downcast_ref::<DeleteItemOutput>() {
            self.charge(&delete.consumed_capacity);
        } else if let Some(transaction) = output.downcast_ref::<TransactWriteItemsOutput>() {
            self.charge(transaction.consumed_capacity());
        }
        Ok(())
    }
}
