//! An embedded DynamoDB with all tables of the templates.

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
    types::{AttributeValue, Capacity, ConsumedCapacity, ReturnConsumedCapacity},
};
use dynoxide::{Database, server};
use serde_json::{Map, Value};
use store::{EventRow, Outbox, Table};
use tokio::net::TcpListener;

use crate::{http::config, template::Template};

/// Table of the service sites.
pub const SITES: &str = "SitesTable";
/// Table of the service inventory.
pub const INVENTORY: &str = "InventoryTable";
/// Table of the service devices.
pub const DEVICES: &str = "DevicesTable";
/// Table of the service billing.
pub const BILLING: &str = "BillingTable";
/// Table of the service alerting.
pub const ALERTING: &str = "AlertingTable";
/// Table of the counts of sites and events.
pub const NETWORK: &str = "NetworkTable";
/// Table of the operators.
pub const OPERATORS: &str = "OperatorsTable";
/// Table of the API keys.
pub const KEYS: &str = "KeysTable";
/// Table of the audit trail.
pub const AUDIT: &str = "AuditTable";
/// Table of the rate limits.
pub const LIMITS: &str = "LimitsTable";
/// Table of the readings.
pub const READINGS: &str = "ReadingsTable";
/// Table of the counters of refused bundles.
pub const REFUSALS: &str = "RefusalsTable";
/// Table of the events: outbox and event log.
pub const EVENTS: &str = "EventsTable";
/// Table of the guards of appended events and of the claims of sources.
pub const EVENT_GUARDS: &str = "EventGuardsTable";
/// Table of the failures.
pub const FAILURES: &str = "FailuresTable";

/// The properties that determine a table's behaviour. The others (billing, backups, encryption) do not affect rows.
const KEYS_AND_INDEXES: [&str; 3] = ["AttributeDefinitions", "KeySchema", "GlobalSecondaryIndexes"];

/// Returns the keys and indexes of all tables of the templates by logical id, in the format of `CreateTable`.
fn tables() -> &'static BTreeMap<String, Value> {
    // Read once per process. Each test starts its own database.
    static TABLES: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let template = Template::read();
        let tables = template.resources("AWS::DynamoDB::Table").into_iter().map(|(id, table)| {
            let properties = table["Properties"].as_object().into_iter().flatten();
            let properties =
                properties.filter(|(name, _)| KEYS_AND_INDEXES.contains(&name.as_str()));
            let properties = properties.map(|(name, value)| (name.clone(), value.clone()));
            (id.to_owned(), properties.collect::<Map<_, _>>().into())
        });
        tables.collect()
    })
}

/// Creates an empty database in memory with the tables for which `is_needed` returns true.
///
/// # Panics
/// If a template is not readable, or a table can't be created.
pub(crate) fn database(is_needed: impl Fn(&str) -> bool) -> Database {
    let database = Database::memory().expect("a database in memory");
    for (name, table) in tables().iter().filter(|(name, _)| is_needed(name.as_str())) {
        let mut table = table.clone();
        table["TableName"] = name.as_str().into();
        table["BillingMode"] = "PAY_PER_REQUEST".into();
        let request = serde_json::from_value(table).expect("CreateTable's request");
        database.create_table(request).expect("a new table");
    }
    database
}

/// An embedded DynamoDB. It ends with the test's runtime.
#[derive(Debug)]
pub struct Dynamo {
    client: Client,
    /// A client for the reads and writes of the tests themselves, which are not counted.
    reader: Client,
    meter: Meter,
    endpoint: String,
}

impl Dynamo {
    /// Starts an embedded DynamoDB with all tables, empty.
    ///
    /// # Panics
    /// If it can't start.
    pub async fn start() -> Self {
        let database = database(|_| true);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("its address"));
        tokio::spawn(server::serve_with_shutdown(listener, database, std::future::pending()));

        let meter = Meter::default();
        let config = config(&endpoint);
        let metered =
            aws_sdk_dynamodb::config::Builder::from(&config).interceptor(meter.clone()).build();
        Self { client: Client::from_conf(metered), reader: Client::new(&config), meter, endpoint }
    }

    /// Returns the URL, for other processes.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Returns a client whose calls are counted. It does not retry.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Returns one of the tables.
    #[must_use]
    pub fn table(&self, name: &str) -> Table {
        Table::new(self.client(), name)
    }

    /// Returns the outbox.
    #[must_use]
    pub fn outbox(&self) -> Outbox {
        Outbox::new(self.table(EVENTS))
    }

    /// Returns the calls since this function was last called, by operation, with the consumed write units.
    ///
    /// # Panics
    /// If another thread of the test panicked.
    #[must_use]
    pub fn take_usage(&self) -> Usage {
        std::mem::take(&mut *self.meter.0.lock().expect("the usage"))
    }

    /// Returns the write units since this function was last called, by table and index, such as `EventsTable/byType`.
    ///
    /// # Panics
    /// If another thread of the test panicked.
    #[must_use]
    pub fn take_write_units_by_index(&self) -> BTreeMap<String, f64> {
        std::mem::take(&mut *self.meter.1.lock().expect("the units"))
    }

    /// Returns all rows of a table, sorted by their text.
    ///
    /// # Panics
    /// If they can't be read.
    pub async fn rows(&self, table: &str) -> Vec<Value> {
        let scan = self.reader.scan().table_name(table).consistent_read(true);
        let items = scan.into_paginator().items().send().collect::<Result<Vec<_>, _>>().await;
        let items = items.expect("a scan");
        let mut rows: Vec<Value> = serde_dynamo::from_items(items).expect("rows as JSON");
        rows.iter_mut().for_each(Value::sort_all_objects);
        rows.sort_by_cached_key(Value::to_string);
        rows
    }

    /// Returns all rows of all tables. Two results are equal if nothing was changed between them.
    pub async fn all_rows(&self) -> BTreeMap<&'static str, Vec<Value>> {
        let mut all = BTreeMap::new();
        for name in tables().keys() {
            all.insert(name.as_str(), self.rows(name).await);
        }
        all
    }

    /// Returns the row of a table with the key `id`.
    ///
    /// # Panics
    /// If it can't be read.
    pub async fn row(&self, table: &str, id: &str) -> Option<Value> {
        self.rows(table).await.into_iter().find(|row| row["id"] == id)
    }

    /// Stores a row unchanged.
    ///
    /// # Panics
    /// If it can't be stored.
    pub async fn put(&self, table: &str, row: Value) {
        let item = serde_dynamo::to_item(row).expect("a row");
        let put = self.reader.put_item().table_name(table).set_item(Some(item)).send();
        put.await.expect("the row is stored");
    }

    /// Returns an entity's events in their order. Asserts what holds for every entity: the sequence has no gap, and
    /// the row's attributes equal those in its envelope.
    ///
    /// # Panics
    /// If that does not hold.
    pub async fn events(&self, entity: impl Into<contracts::Entity>) -> Vec<EventRow> {
        let entity = entity.into();
        let response = self
            .reader
            .query()
            .table_name(EVENTS)
            .key_condition_expression("entity = :entity")
            .expression_attribute_values(":entity", AttributeValue::S(entity.to_string()))
            .consistent_read(true)
            .send()
            .await
            .expect("a query");
        let items = response.items.unwrap_or_default();
        let rows: Vec<EventRow> = serde_dynamo::from_items(items).expect("rows of events");
        for (row, sequence) in rows.iter().zip(1..) {
            let metadata = row.envelope().expect("an envelope").metadata;
            assert_eq!(row.sequence, sequence, "{entity} has a gap");
            assert_eq!(metadata.sequence, sequence);
            assert_eq!(metadata.log_key(), entity.to_string());
            assert_eq!(metadata.kind, row.kind);
            assert_eq!(metadata.occurred_at, row.occurred_at);
            assert_eq!(metadata.correlation_key(), row.correlation_id);
            assert_eq!(metadata.event_id, contracts::EventId::from_entity(&entity, sequence));
            assert_eq!(row.source, entity.kind.source());
        }
        rows
    }

    /// Returns the types of an entity's events in their order.
    pub async fn event_types(&self, entity: impl Into<contracts::Entity>) -> Vec<String> {
        self.events(entity).await.into_iter().map(|row| row.kind).collect()
    }
}

/// The calls and what they cost.
#[derive(Debug, Default, PartialEq)]
pub struct Usage {
    /// Calls by operation.
    pub calls: BTreeMap<String, u32>,
    /// Write units of the successful calls.
    pub write_units: f64,
}

/// An interceptor that counts calls and their write units, also by table and index.
#[derive(Clone, Debug, Default)]
struct Meter(Arc<Mutex<Usage>>, Arc<Mutex<BTreeMap<String, f64>>>);

impl Meter {
    fn add_write_units<'a>(&self, consumed: impl IntoIterator<Item = &'a ConsumedCapacity>) {
        let mut by_index = self.1.lock().expect("the units");
        // DynamoDB reports a transaction's units as write capacity units, those of a single write as capacity units.
        let of = |capacity: &Capacity| capacity.write_capacity_units.or(capacity.capacity_units);
        for consumed in consumed {
            let units = consumed.write_capacity_units.or(consumed.capacity_units);
            self.0.lock().expect("the usage").write_units += units.unwrap_or_default();
            let table = consumed.table_name().unwrap_or_default();
            let indexes = consumed.global_secondary_indexes().into_iter().flatten();
            let indexes = indexes.map(|(name, units)| (format!("{table}/{name}"), of(units)));
            let itself = (table.to_owned(), consumed.table().and_then(of));
            for (name, units) in indexes.chain([itself]) {
                *by_index.entry(name).or_default() += units.unwrap_or_default();
            }
        }
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
        let by_index = Some(ReturnConsumedCapacity::Indexes);
        if let Some(put) = input.downcast_mut::<PutItemInput>() {
            put.return_consumed_capacity = by_index;
        } else if let Some(update) = input.downcast_mut::<UpdateItemInput>() {
            update.return_consumed_capacity = by_index;
        } else if let Some(delete) = input.downcast_mut::<DeleteItemInput>() {
            delete.return_consumed_capacity = by_index;
        } else if let Some(transaction) = input.downcast_mut::<TransactWriteItemsInput>() {
            transaction.return_consumed_capacity = by_index;
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
        *self.0.lock().expect("the usage").calls.entry(operation).or_default() += 1;
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
            self.add_write_units(&put.consumed_capacity);
        } else if let Some(update) = output.downcast_ref::<UpdateItemOutput>() {
            self.add_write_units(&update.consumed_capacity);
        } else if let Some(delete) = output.downcast_ref::<DeleteItemOutput>() {
            self.add_write_units(&delete.consumed_capacity);
        } else if let Some(transaction) = output.downcast_ref::<TransactWriteItemsOutput>() {
            self.add_write_units(transaction.consumed_capacity());
        }
        Ok(())
    }
}
