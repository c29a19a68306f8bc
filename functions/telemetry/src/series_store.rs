//! Stores the series of bundles: each sample once, however often and in whichever order its bundle is delivered.
//!
//! # Identity
//!
//! A row's key has the sensor, the time of the row's first sample and the bundle id. Above revision 1, it ends with the
//! revision.
//!
//! - At revision 1, a series is identified by its sensor, its bundle id and its first time. A series of the same bundle
//!   id with another first time is another series, and all its samples are stored. (If a row of the bundle begins at
//!   that time, it is a repeat of that row or a conflict with it.)
//! - Above revision 1, a series is identified by its sensor, its bundle id and its revision. Another first time is a
//!   conflict.
//!
//! # Rows
//!
//! A series is divided into pieces that fit into one row. The first record that contains a piece creates one row. A
//! later record of the same bundle and revision may contain more samples of the piece. Then the new samples become a
//! further row. So a piece has one row or a chain of rows, each beginning where the one before ends. A record with
//! fewer samples is a repeat. A record with another sample at a stored instant is a conflict. A repeat writes no
//! samples. At most it gives a row an earlier arrival.
//!
//! # Revisions
//!
//! A revision above the first one has a row `REVISION/`, a new value of the sensor's counter of changes, and an event
//! `ReadingsRevised`. These three commit in one transaction. The transaction also has the new rows of samples if they
//! are at most `MAX_ROWS` and none was left by an earlier attempt. Otherwise each of these rows is put on its own
//! before the transaction, several concurrently.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use contracts::{
    Entity, OnboardingId, SensorId, SiteId, Timestamp,
    events::{ReadingsRevised, RevisionKind},
    readings::{Bundle, FIRST_REVISION, Series},
    sample::{Qualifiers, Sample},
    stream::Arrival,
};
use futures_util::{StreamExt, stream as futures};
use serde::Serialize;
use serde_bytes::ByteBuf;
use series::{
    RevisionRow, RowKey, SeriesRow,
    packing::{hash, pack, unpack_qualified},
};
use store::{Commit, Key, NewEvent, Outbox, StoreError, Table, Transaction, from_item, jittered};

use crate::{SensorRow, TelemetryError};

/// The number of parts of a bundle that are stored concurrently, and of concurrent puts of the rows of a large
/// revision. A function processes 8 bundles concurrently, and each put takes a connection.
const CONCURRENT_PUTS: usize = 4;
/// The maximum number of rows of samples in a transaction. DynamoDB accepts 100 writes in a transaction. The revision's
/// row, the sensor's counter and the event are three of them.
const MAX_ROWS: usize = 90;
/// The maximum number of attempts for a conditional write that is refused because another writer has changed the row.
pub(crate) const MAX_ATTEMPTS: u32 = 6;
/// Half of the maximum pause before the second attempt. The pause doubles with each further attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Stores the series of bundles.
#[derive(Clone, Debug)]
pub struct SeriesStore {
    /// The readings table.
    pub readings: Table,
    /// The outbox for `ReadingsRevised`.
    pub outbox: Outbox,
}

/// A bundle, with the arrival of its record and the time of storage. Both are stored in its rows.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The bundle.
    pub bundle: &'a Bundle,
    /// When the record arrived at the stream, if that is known.
    pub arrival: Option<&'a Arrival>,
    /// The time of storage.
    pub now: Timestamp,
}

/// The numbers of samples of a bundle that were stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The number of samples that were written.
    pub samples: usize,
    /// The number of samples that were in the table before.
    pub repeated: usize,
}

impl std::ops::AddAssign for Stored {
    fn add_assign(&mut self, other: Self) {
        self.samples += other.samples;
        self.repeated += other.repeated;
    }
}

/// A part of a series that fits into one row.
#[derive(Clone, Debug)]
struct Piece<'a> {
    samples: &'a [Sample],
    qualifiers: Qualifiers,
}

/// A part of a series that commits alone.
enum Part<'a> {
    /// A piece of the first revision.
    Piece(SensorId, Piece<'a>),
    /// The whole series of a later revision.
    Revision(&'a Series),
}

/// A sensor's counter of changes and one of its revisions, as they were read together.
struct Revised {
    sensor: SensorRow,
    revision: Option<RevisionRow>,
}

impl SeriesStore {
    /// Stores all series of a bundle. All of them are tried: a conflict in one series does not affect the others.
    ///
    /// Returns the conflicts with what is stored. Returns `Err` if the record must be delivered again.
    pub async fn store(
        &self,
        received: Received<'_>,
    ) -> Result<(Stored, Vec<TelemetryError>), TelemetryError> {
        let parts = parts(received.bundle).map(|part| async {
            match part {
                Part::Piece(sensor, piece) => self.put(received, sensor, piece).await,
                Part::Revision(series) => self.revise(received, series).await,
            }
        });
        let results: Vec<_> = futures::iter(parts).buffered(CONCURRENT_PUTS).collect().await;
        let (mut stored, mut conflicts) = (Stored::default(), Vec::new());
        for result in results {
            match result {
                Ok(part) => stored += part,
                Err(error) if error.permanent().is_some() => conflicts.push(error),
                // The record is delivered again, and the conflicts are found then.
                Err(error) => return Err(error),
            }
        }
        Ok((stored, conflicts))
    }

    /// Stores a piece by single conditional puts: its new samples become a row. An existing row is never overwritten, so
    /// this is idempotent. (A [`Transaction`] with one put is a `PutItem`.)
    async fn put(
        &self,
        received: Received<'_>,
        sensor: SensorId,
        piece: Piece<'_>,
    ) -> Result<Stored, TelemetryError> {
        let mut stored = Stored::default();
        let mut rest = piece;
        // Each round but the last one finds samples that were stored before, so it ends.
        while let Some(row) = rest.row(received) {
            let key = SeriesRow::key(sensor, &row.row);
            let commit =
                Transaction::on(&self.readings).create(&self.readings, &key, &row).commit();
            let known = match commit.await? {
                Commit::Done => {
                    stored.samples += rest.samples.len();
                    break;
                }
                Commit::Refused(refused) => match refused.row::<SeriesRow>(&key)? {
                    Some(existing) => {
                        self.known(received, sensor, &rest, &row.hash, existing).await?
                    }
                    None => return Err(conflict(received, sensor, row.row)),
                },
            };
            stored.repeated += known;
            rest = rest.after(known);
        }
        Ok(stored)
    }

    /// Returns how many samples of a piece with this hash are stored. `first` is the row that begins the piece.
    async fn known(
        &self,
        received: Received<'_>,
        sensor: SensorId,
        piece: &Piece<'_>,
        hash: &[u8],
        first: SeriesRow,
    ) -> Result<usize, TelemetryError> {
        if first.hash == hash {
            let known = piece.samples.len();
            self.note_arrival(received, sensor, first, known, known).await?;
            return Ok(known);
        }
        let (_, known, all) = piece.find(received, sensor, &first)?;
        if known < piece.samples.len() {
            return self.chain(received, sensor, piece).await;
        }
        self.note_arrival(received, sensor, first, known, all).await?;
        Ok(known)
    }

    /// Reads the rows of a piece. Returns how many of the piece's samples they have from its beginning, without a gap.
    async fn chain(
        &self,
        received: Received<'_>,
        sensor: SensorId,
        piece: &Piece<'_>,
    ) -> Result<usize, TelemetryError> {
        let Bundle { bundle_id, revision, .. } = received.bundle;
        let (Some(first), Some(last)) = (piece.samples.first(), piece.samples.last()) else {
            return Ok(0);
        };
        let query = self
            .readings
            .query("sensorId = :sensor AND #row BETWEEN :first AND :last")
            .text("sensor", sensor)
            .text("first", RowKey::text(first.at, bundle_id, *revision))
            .text("last", RowKey::text(last.at, bundle_id, *revision))
            .consistent();
        let mut known = 0;
        for item in query.all().await? {
            let row = SeriesRow::from_item(sensor, item)?;
            let is_own = RowKey::parse(&row.row)
                .is_some_and(|key| key.bundle == bundle_id.as_str() && key.revision == *revision);
            if !is_own {
                continue;
            }
            let (index, count, all) = piece.find(received, sensor, &row)?;
            if index <= known {
                known = known.max(index + count);
            }
            self.note_arrival(received, sensor, row, count, all).await?;
        }
        Ok(known)
    }

    /// Notes that another record contains the first `samples` samples of this row. `all` is the number of samples in
    /// the row. Writes only if that record arrived before the arrival that the row has for these samples.
    async fn note_arrival(
        &self,
        received: Received<'_>,
        sensor: SensorId,
        mut row: SeriesRow,
        samples: usize,
        all: usize,
    ) -> Result<(), TelemetryError> {
        let Some(arrival) = received.arrival else { return Ok(()) };
        let key = SeriesRow::key(sensor, &row.row);
        for _ in 0..MAX_ATTEMPTS {
            let Some(noted) = row.with_arrival(samples, all, arrival) else { return Ok(()) };
            match self.update_arrivals(&key, &row, &noted).await? {
                Commit::Done => return Ok(()),
                // Another record has changed it in the meantime.
                Commit::Refused(refused) => match refused.row(&key)? {
                    Some(changed) => row = changed,
                    None => return Ok(()),
                },
            }
        }
        Err(overtaken(&key).into())
    }

    /// Replaces the arrivals of a row, unless they have changed since it was read.
    async fn update_arrivals(
        &self,
        key: &Key,
        before: &SeriesRow,
        after: &SeriesRow,
    ) -> Result<Commit, StoreError> {
        let mut values = Vec::new();
        let mut expressions = Vec::new();
        let old = [
            ("arrival", attribute(key, &before.arrival)?),
            ("earlier", attribute(key, &before.earlier)?),
        ];
        for (name, value) in old {
            if is_absent(&value) {
                expressions.push(format!("attribute_not_exists(#{name})"));
            } else {
                expressions.push(format!("#{name} = :old_{name}"));
                values.push((format!("old_{name}"), value));
            }
        }
        let condition = expressions.join(" AND ");
        let (mut set, mut remove) = (Vec::new(), String::new());
        let new = [
            ("arrival", attribute(key, &after.arrival)?),
            ("earlier", attribute(key, &after.earlier)?),
        ];
        for (name, value) in new {
            if is_absent(&value) {
                remove = format!(" REMOVE #{name}");
            } else {
                set.push(format!("#{name} = :{name}"));
                values.push((name.to_owned(), value));
            }
        }
        let update = format!("SET {}{remove}", set.join(", "));
        let values = values.iter().map(|(name, value)| (name.as_str(), value.clone()));
        Transaction::on(&self.readings)
            .update(&self.readings, key, &update, Some(&condition), values)
            .commit()
            .await
    }

    /// Stores a series of a revision above the first one. Its row, the counter of the sensor's changes and the event
    /// commit together, and with them up to `MAX_ROWS` new rows of samples.
    async fn revise(
        &self,
        received: Received<'_>,
        series: &Series,
    ) -> Result<Stored, TelemetryError> {
        let Bundle { bundle_id, revision, .. } = received.bundle;
        let sensor = series.sensor_id;
        let key = RevisionRow::key(sensor, bundle_id, *revision);
        let mut rows_first = false;
        // The number of samples that this call has put individually.
        let mut written = 0;
        for attempt in 0..MAX_ATTEMPTS {
            pause_before(attempt).await;
            let read = self.read_revised(&key, sensor).await?;
            let (new, known) = self.new_pieces(received, series, read.revision.as_ref()).await?;
            if new.is_empty()
                && let Some(existing) = &read.revision
            {
                self.note_revision_arrival(received, &key, existing).await?;
                return Ok(Stored { samples: written, repeated: known - written });
            }
            let new_samples: usize = new.iter().map(|piece| piece.samples.len()).sum();
            let mut committing = 0;
            let mut transaction = Transaction::on(&self.readings);
            if rows_first || new.len() > MAX_ROWS {
                // The rows do not fit into one transaction, or some exist already from an earlier attempt. So each is
                // put on its own. The transaction then has only the revision's row, the counter and the event.
                let puts = new.iter().map(|piece| self.put(received, sensor, piece.clone()));
                let puts =
                    futures::iter(puts).buffer_unordered(CONCURRENT_PUTS).collect::<Vec<_>>();
                for put in puts.await {
                    written += put?.samples;
                }
            } else {
                committing = new_samples;
                for row in new.iter().filter_map(|piece| piece.row(received)) {
                    let key = SeriesRow::key(sensor, &row.row);
                    transaction = transaction.create(&self.readings, &key, &row);
                }
            }
            let transaction = self.add_revision(transaction, received, series, &new, &read)?;
            match transaction.commit().await? {
                Commit::Done => {
                    let samples = written + committing;
                    return Ok(Stored { samples, repeated: known + new_samples - samples });
                }
                // If a row of samples exists already, an earlier attempt put the rows first and did not write the
                // revision's row. Then the next attempt puts the rows first, too. Otherwise another writer has changed
                // the counter or the revision's row.
                Commit::Refused(refused) => {
                    let keys = new.iter().filter_map(|piece| piece.row(received));
                    let mut keys = keys.map(|row| SeriesRow::key(sensor, &row.row));
                    rows_first = keys.any(|key| refused.contains(&key));
                }
            }
        }
        Err(overtaken(&key).into())
    }

    async fn read_revised(&self, key: &Key, sensor: SensorId) -> Result<Revised, TelemetryError> {
        let keys = [SensorRow::key(sensor), key.clone()];
        let items = self.readings.batch_get(keys).consistent().send().await?;
        let (mut sensor_row, mut revision) = (None, None);
        for item in items {
            if item.get("row").and_then(|row| row.as_s().ok()).is_some_and(|row| row == "SENSOR") {
                sensor_row = Some(from_item(item, || SensorRow::key(sensor).to_string())?);
            } else {
                revision = Some(RevisionRow::from_item(sensor, item)?);
            }
        }
        let sensor = sensor_row.ok_or(TelemetryError::UnknownSensor(sensor))?;
        Ok(Revised { sensor, revision })
    }

    /// Returns the pieces of a revision that are not stored yet, and the number of samples that are.
    async fn new_pieces<'a>(
        &self,
        received: Received<'_>,
        series: &'a Series,
        existing: Option<&RevisionRow>,
    ) -> Result<(Vec<Piece<'a>>, usize), TelemetryError> {
        let pieces = pieces(series);
        let Some(existing) = existing else { return Ok((pieces.collect(), 0)) };
        let first = series.samples.first().map(|sample| sample.at);
        let same_start =
            existing.span.zip(first).is_none_or(|((stored, _), first)| stored == first);
        if existing.replaces != series.replaces || !same_start {
            let row = RevisionRow::sort_key(&existing.bundle_id, existing.revision);
            return Err(conflict(received, series.sensor_id, row));
        }
        let (mut new, mut all_known) = (Vec::new(), 0);
        for piece in pieces {
            let known = self.chain(received, series.sensor_id, &piece).await?;
            all_known += known;
            let rest = piece.after(known);
            if !rest.samples.is_empty() {
                new.push(rest);
            }
        }
        Ok((new, all_known))
    }

    /// Adds the revision's row, the sensor's counter of changes and the event to a transaction.
    fn add_revision(
        &self,
        transaction: Transaction,
        received: Received<'_>,
        series: &Series,
        new: &[Piece<'_>],
        read: &Revised,
    ) -> Result<Transaction, StoreError> {
        let Received { bundle, arrival, now } = received;
        let Bundle { bundle_id, revision, site_id, reason, .. } = bundle;
        let sensor = series.sensor_id;
        let key = RevisionRow::key(sensor, bundle_id, *revision);
        let span = |samples: &[Sample]| Some((samples.first()?.at, samples.last()?.at));
        let transaction = match &read.revision {
            None => {
                let row = RevisionRow {
                    bundle_id: bundle_id.clone(),
                    revision: *revision,
                    reason: reason.clone().unwrap_or_default(),
                    replaces: series.replaces,
                    span: span(&series.samples),
                    samples: series.samples.len(),
                    arrival: arrival.cloned(),
                    stored_at: now.millis(),
                };
                transaction.create(&self.readings, &key, &row)
            }
            Some(existing) => {
                let mut values = vec![
                    ("span", attribute(&key, &span(&series.samples))?),
                    ("samples", number(&series.samples.len())),
                    ("before", number(&existing.samples)),
                ];
                let mut update = "SET #span = :span, #samples = :samples".to_owned();
                // A record with more samples may have arrived before the one that was stored first.
                let earlier =
                    arrival.filter(|it| existing.arrival.as_ref().is_some_and(|old| *it < old));
                if let Some(arrival) = earlier {
                    update.push_str(", #arrival = :arrival");
                    values.push(("arrival", AttributeValue::S(arrival.as_str().to_owned())));
                }
                let condition = Some("#samples = :before");
                transaction.update(&self.readings, &key, &update, condition, values)
            }
        };
        let (count, uncounted, values) = read.sensor.count(1);
        let set = format!("SET {count}");
        let key = SensorRow::key(sensor);
        let transaction = transaction.update(&self.readings, &key, &set, Some(uncounted), values);
        let new_samples = new.first().zip(new.last()).and_then(|(first, last)| {
            Some((first.samples.first()?.at, last.samples.last()?.at.plus_millis(1)))
        });
        // The replaced samples disappear from queries when the revision's row is created. So the event contains the
        // replaced range only then.
        let replaced = series.replaces.filter(|_| read.revision.is_none());
        let ranges = new_samples.into_iter().chain(replaced.map(|range| (range.from, range.to)));
        let Some((from, to)) = ranges.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else {
            return Ok(transaction);
        };
        let event = ReadingsRevised {
            site_id: *site_id,
            sensor_id: sensor,
            kind: match new_samples {
                Some(_) => RevisionKind::Value,
                None => RevisionKind::Retraction,
            },
            from,
            to,
            bundle_id: Some(bundle_id.clone()),
            revision: Some(*revision),
            reason: reason.clone(),
        };
        Ok(transaction.event(
            &self.outbox,
            NewEvent {
                entity: Entity::readings(sensor),
                sequence: read.sensor.changes + 1,
                correlation_id: Some(OnboardingId::from_site(*site_id)),
                operator_id: read.sensor.operator_id,
                causation_id: None,
                occurred_at: now,
                data: event,
            },
        ))
    }

    /// If this record arrived before the arrival in the revision's row, replaces that arrival.
    async fn note_revision_arrival(
        &self,
        received: Received<'_>,
        key: &Key,
        existing: &RevisionRow,
    ) -> Result<(), TelemetryError> {
        let (Some(arrival), Some(known)) = (received.arrival, &existing.arrival) else {
            return Ok(());
        };
        if arrival >= known {
            return Ok(());
        }
        let value = [("arrival", AttributeValue::S(arrival.as_str().to_owned()))];
        let (update, condition) = ("SET #arrival = :arrival", Some("#arrival > :arrival"));
        let commit = Transaction::on(&self.readings)
            .update(&self.readings, key, update, condition, value)
            .commit();
        match commit.await? {
            // A record that arrived before this one has changed it in the meantime.
            Commit::Done | Commit::Refused(_) => Ok(()),
        }
    }
}

impl Piece<'_> {
    /// Returns the row of the samples. `None` if there are none.
    fn row(&self, Received { bundle, arrival, now }: Received<'_>) -> Option<SeriesRow> {
        let first = self.samples.first()?;
        let packed = pack(self.samples, &self.qualifiers);
        Some(SeriesRow {
            row: RowKey::text(first.at, &bundle.bundle_id, bundle.revision),
            end: self.samples.last()?.at.millis(),
            stored_at: now.millis(),
            arrival: arrival.cloned(),
            earlier: Vec::new(),
            hash: ByteBuf::from(hash(self.samples, &packed)),
            samples: ByteBuf::from(packed),
        })
    }

    /// Returns the piece without its first samples.
    fn after(&self, count: usize) -> Self {
        let count = count.min(self.samples.len());
        Self {
            samples: &self.samples[count..],
            qualifiers: self.qualifiers.part(count..self.samples.len()),
        }
    }

    /// Compares a stored row of the same bundle and revision with this piece. Returns the index of the row's first sample
    /// in the piece, how many of the row's samples are in the piece, and how many samples the row has.
    fn find(
        &self,
        received: Received<'_>,
        sensor: SensorId,
        row: &SeriesRow,
    ) -> Result<(usize, usize, usize), TelemetryError> {
        let conflict = || conflict(received, sensor, row.row.clone());
        let unpacked = unpack_qualified(&row.samples).map_err(|error| StoreError::Corrupt {
            row: SeriesRow::key(sensor, &row.row).to_string(),
            reason: error.to_string(),
        });
        let (stored, qualifiers) = unpacked?;
        let start = stored.first().ok_or_else(conflict)?.at;
        let index = self.samples.binary_search_by_key(&start, |sample| sample.at);
        let index = index.map_err(|_| conflict())?;
        let sent = &self.samples[index..];
        let count = stored.len().min(sent.len());
        let is_same = sent[..count] == stored[..count]
            && (0..count).all(|n| self.qualifiers.of(index + n) == qualifiers.of(n));
        if is_same { Ok((index, count, stored.len())) } else { Err(conflict()) }
    }
}

/// Returns the rows of a bundle that is stored for the first time, each with its sensor and its number of samples.
pub fn rows(received: Received<'_>) -> impl Iterator<Item = (SensorId, usize, SeriesRow)> {
    received.bundle.series.iter().flat_map(move |series| {
        pieces(series).filter_map(move |piece| {
            Some((series.sensor_id, piece.samples.len(), piece.row(received)?))
        })
    })
}

/// Returns the parts of a bundle that commit separately.
fn parts(bundle: &Bundle) -> impl Iterator<Item = Part<'_>> {
    let is_first = bundle.revision == FIRST_REVISION;
    bundle.series.iter().flat_map(move |series| {
        let revision = (!is_first).then_some(Part::Revision(series));
        let pieces = pieces(series).take(if is_first { usize::MAX } else { 0 });
        revision.into_iter().chain(pieces.map(|piece| Part::Piece(series.sensor_id, piece)))
    })
}

/// Divides a series into pieces within the limits on a row's samples and time span.
///
/// More samples at the end of the series only extend its last piece or begin further ones. So the earlier pieces of a
/// bundle that grows stay the same.
fn pieces(series: &Series) -> impl Iterator<Item = Piece<'_>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let rest = &series.samples[start..];
        let end = rest.first()?.at.plus_millis(SeriesRow::MAX_SPAN_MILLIS);
        let count = rest.iter().take(SeriesRow::MAX_SAMPLES).take_while(|it| it.at < end).count();
        let range = start..start + count;
        start += count;
        Some(Piece {
            samples: &series.samples[range.clone()],
            qualifiers: series.qualifiers.part(range),
        })
    })
}

fn conflict(received: Received<'_>, sensor: SensorId, row: String) -> TelemetryError {
    let site: SiteId = received.bundle.site_id;
    TelemetryError::BundleConflict { sensor, site, row }
}

/// Waits before a further attempt to write a row that other writers change concurrently. The first attempt, 0, does not
/// wait.
pub(crate) async fn pause_before(attempt: u32) {
    if attempt > 0 {
        tokio::time::sleep(jittered(FIRST_PAUSE * 2_u32.pow(attempt))).await;
    }
}

pub(crate) fn overtaken(key: &Key) -> StoreError {
    StoreError::Transient(format!("other writers have changed {key} {MAX_ATTEMPTS} times"))
}

fn number(value: &impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

pub(crate) fn attribute(key: &Key, value: &impl Serialize) -> Result<AttributeValue, StoreError> {
    serde_dynamo::to_attribute_value(value)
        .map_err(|error| StoreError::Corrupt { row: key.to_string(), reason: error.to_string() })
}

/// Returns whether a row leaves an attribute with this value out.
fn is_absent(value: &AttributeValue) -> bool {
    match value {
        AttributeValue::Null(_) => true,
        AttributeValue::L(values) => values.is_empty(),
        _ => false,
    }
}
